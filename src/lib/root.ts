/** Where Falcon's own files are: the scripts under cluster/ and what the build made. */
import { fileURLToPath } from 'node:url';

/** The directory of package.json; this file is built to <root>/dist/src/lib. */
export const repositoryRoot = fileURLToPath(new URL('../../..', import.meta.url)).replace(/\/$/, '');
