import { testSeeds } from './seeds.js';

await testSeeds(101, 100);
