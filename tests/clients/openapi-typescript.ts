// A client whose types openapi-typescript made: an export, and a call that is refused.
import createClient from "openapi-fetch";

import type { components, paths } from "./schema";

declare const process: { argv: string[] };

async function main(): Promise<void> {
    const client = createClient<paths>({ baseUrl: process.argv[2] });
    const header = { "X-Consumer-ID": "openapi-typescript" };
    // No member has to be there, and each may.
    const none: components["schemas"]["Options"] = {};
    const started = await client.POST("/exports/full", { params: { header }, body: { ...none, format: "ndjson" } });
    if (!started.data) throw new Error(`${started.error.code}: ${started.error.detail}`);
    // A request for several datasets makes a batch.
    if (!("jobId" in started.data)) throw new Error(`a batch: ${started.data.batchId}`);

    const path = { jobId: started.data.jobId };
    const job = await client.GET("/exports/{jobId}", { params: { path, query: { wait: 60 } } });
    if (job.data?.status !== "completed") throw new Error(JSON.stringify(job.data ?? job.error));

    const refused = await client.POST("/exports/delta", { params: { header: { "X-Consumer-ID": "no good" } } });
    if (refused.error?.code !== "consumer_invalid") throw new Error(JSON.stringify(refused.error));
    console.log(`openapi-typescript: ${job.data.rowsExported} rows`);
}

void main();
