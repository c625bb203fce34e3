// A client that hey-api made: an export, and a call that is refused.
import { client } from "./hey/client.gen";
import { getExport, startDelta, startFull } from "./hey/sdk.gen";
import type { Options, Problem } from "./hey/types.gen";

declare const process: { argv: string[] };

async function main(): Promise<void> {
    client.setConfig({ baseUrl: process.argv[2] });
    const headers = { "X-Consumer-ID": "hey-api" };
    // No member has to be there, and each may.
    const none: Options = {};
    const started = await startFull({ headers, body: { ...none, format: "ndjson" } });
    if (!started.data) throw new Error(JSON.stringify(started.error));
    // A request for several datasets makes a batch.
    if (!("jobId" in started.data)) throw new Error(`a batch: ${started.data.batchId}`);

    const job = await getExport({ path: { jobId: started.data.jobId }, query: { wait: 60 } });
    if (job.data?.status !== "completed") throw new Error(JSON.stringify(job.data ?? job.error));

    const refused = await startDelta({ headers: { "X-Consumer-ID": "no good" } });
    const problem: Problem | undefined = refused.error;
    if (problem?.code !== "consumer_invalid") throw new Error(JSON.stringify(problem));
    console.log(`hey-api: ${job.data.rowsExported} rows`);
}

void main();
