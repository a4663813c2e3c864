// Counts the tests in raw TAP: node totals.js STATUS FILE...; STATUS is what the test run ended with.
//
// A test is a subtest without subtests of its own (its assertions are not counted one by one), or an assertion
// that stands directly in a test file. A file that fails without a failing test in it (it crashed, or ran out
// of time) counts as one failed test. What failed is named, with what was said of it, before the totals.
import { existsSync, readFileSync } from 'node:fs';

/** Lines of a failure's diagnostics, and characters of one. */
const saidMax = 30;
const saidChars = 300;

/** Parses indented TAP into a tree of test points. */
function parse(text) {
  const levels = [[]];
  let last = null;
  for (const line of text.split('\n')) {
    const match = /^((?: {4})*)(not )?ok\b ?\d*(.*)$/.exec(line);
    if (match === null) {
      if (last?.ok === false && last.said.length < saidMax && /\S/.test(line)) last.said.push(line.trim());
      continue;
    }
    const depth = match[1].length / 4;
    while (levels.length <= depth) levels.push([]);
    const children = levels[depth + 1] ?? [];
    levels.length = depth + 1;
    const skipped = /# (SKIP|TODO)\b/i.test(match[3]);
    const name = match[3].replace(/^ - /, '').replace(/ # (time|SKIP|TODO).*/i, '');
    last = { ok: match[2] === undefined, skipped, children, name, said: [] };
    levels[depth].push(last);
  }
  return levels[0] ?? [];
}

const none = { passed: 0, failed: 0, skipped: 0 };
const add = (a, b) => ({
  passed: a.passed + b.passed,
  failed: a.failed + b.failed,
  skipped: a.skipped + b.skipped,
});

function countPoint(point) {
  if (point.skipped) return { ...none, skipped: 1 };
  if (!point.children.some((child) => child.children.length > 0))
    return point.ok ? { ...none, passed: 1 } : { ...none, failed: 1 };
  return countInside(point);
}

function countInside(point) {
  const sum = point.children.map(countPoint).reduce(add, none);
  return !point.ok && sum.failed === 0 ? add(sum, { ...none, failed: 1 }) : sum;
}

/** A program's own cases are tests although they have no subtests: their parent is a spawned program. */
function countFile(file) {
  return file.skipped && file.children.length === 0 ? { ...none, skipped: 1 } : countInside(file);
}

const shortened = (text) => (text.length > saidChars ? `${text.slice(0, saidChars)}...` : text);

/** The innermost points that failed, with the names of all around them. */
function failures(point, path = []) {
  if (point.ok || point.skipped) return [];
  const here = [...path, point.name];
  const inside = point.children.flatMap((child) => failures(child, here));
  return inside.length > 0 ? inside : [{ path: here, said: point.said }];
}

const [status, ...files] = process.argv.slice(2);
const points = files.filter((file) => existsSync(file)).flatMap((file) => parse(readFileSync(file, 'utf8')));
let total = points.map(countFile).reduce(add, none);
// A build or a check that failed ran no test, or is not among them.
if (status !== '0' && total.failed === 0) total = add(total, { ...none, failed: 1 });
for (const { path, said } of points.flatMap((point) => failures(point)))
  console.log(
    [`failed: ${path.map(shortened).join(' > ')}`, ...said.map((line) => `  ${shortened(line)}`)].join('\n'),
  );
console.log(
  `${total.passed} passed, ${total.failed} failed${total.skipped > 0 ? `, ${total.skipped} skipped` : ''}`,
);
process.exitCode = total.failed > 0 || total.passed === 0 ? 1 : 0;
