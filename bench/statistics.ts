export const mean = (values: readonly number[]): number => values.reduce((a, b) => a + b, 0) / values.length;
export const median = (values: readonly number[]): number =>
  [...values].sort((a, b) => a - b)[values.length >> 1] ?? 0;
