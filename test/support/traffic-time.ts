/** How long tests make traffic: MINUTES= in the environment, or as long as the test has in mind. Errors: not a number above 0. */
export function trafficMs(otherwiseMs: number): number {
  const minutes = process.env['MINUTES'];
  const ms = minutes === undefined ? otherwiseMs : Number(minutes) * 60_000;
  if (!(ms > 0)) throw new Error(`MINUTES is a number above 0, not ${minutes}`);
  return ms;
}
