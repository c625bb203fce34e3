// Rows of a server-side cursor by pg-query-stream, written by csv-stringify: QUERY FILE.

import { createWriteStream } from "node:fs";
import { pipeline } from "node:stream/promises";
import { stringify } from "csv-stringify";
import pg from "pg";
import QueryStream from "pg-query-stream";

const [query, path] = process.argv.slice(2);
const client = new pg.Client();
await client.connect();
const rows = client.query(new QueryStream(query, [], { batchSize: 1000 }));
const cast = { date: (time) => time.toISOString(), boolean: String };
await pipeline(rows, stringify({ header: true, cast }), createWriteStream(path));
await client.end();
