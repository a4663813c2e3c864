import { testSeeds } from './seeds.js';

await testSeeds(1, 100);
