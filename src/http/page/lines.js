// The lines of a list of exports. The exports of a batch, which complete together or not at all, are one line, which opens.

import { Problem, get } from "./api.js";
import { count } from "./figures.js";
import { jobRow } from "./jobrow.js";
import { isOpen } from "./words.js";

// Each of several hundred is found on the batch's page.
const MOST = 50;

// How many exports a batch has, of which a list may lack some: asked for once. Null as long as it is not known.
const sizes = new Map();

async function askForSize(batchId, draw) {
  if (sizes.has(batchId)) return;
  sizes.set(batchId, null);
  try {
    sizes.set(batchId, (await get(`/batches/${encodeURIComponent(batchId)}`)).jobs.length);
    draw();
  } catch (error) {
    // One that this key may not see stays unknown; no answer is the connection's trouble.
    if (!(error instanceof Problem)) sizes.delete(batchId);
  }
}

// A batch as if it were one export, as far as its members are known. It has neither number nor file of its own.
export function whole(members, datasets = count(members.length)) {
  const [first] = members;
  const any = (status) => members.some((job) => job.status === status);
  const sum = (member) => members.reduce((total, job) => total + job[member], 0);
  const times = (member) => members.map((job) => job[member]).filter(Boolean).sort();
  const open = members.filter(isOpen);
  const phases = new Set(open.map(({ phase }) => phase));
  const ended = ["failed", "cancelled"].find(any) ?? "completed";
  const status = open.length === 0 ? ended : members.every((job) => job.status === "pending") ? "pending" : "processing";
  const [startedAt = null] = times("startedAt");
  const finishedAt = open.length > 0 ? null : (times("finishedAt").at(-1) ?? null);
  return {
    ...first,
    jobId: first.batchId,
    // One that needed it may have got a full export instead.
    exportType: members.find(({ exportType }) => exportType !== "full")?.exportType ?? "full",
    isHelped: members.some(({ isHelped }) => isHelped),
    dataset: `${datasets} datasets`,
    members,
    status,
    skipped: members.every((job) => job.skipped),
    phase: phases.size === 1 ? [...phases][0] : sum("rowsExported") > 0 ? "writing" : "reading",
    progress: Math.floor(sum("progress") / members.length),
    rowsExported: sum("rowsExported"),
    bytesWritten: sum("bytesWritten"),
    error: members.find((job) => job.error !== null && job.error.code !== "batch_member_failed")?.error ?? null,
    startedAt,
    finishedAt,
    durationSeconds: startedAt === null || finishedAt === null ? null : Math.max(0, (Date.parse(finishedAt) - Date.parse(startedAt)) / 1000),
    number: null,
    digest: null,
    files: [],
  };
}

// `hasAll` says whether the list has all exports of a batch.
function linesOf(jobs, opened, hasAll, draw) {
  const batches = Map.groupBy(jobs.filter(({ batchId }) => batchId !== null), ({ batchId }) => batchId);
  const seen = new Set();
  return jobs.flatMap((job) => {
    const members = batches.get(job.batchId) ?? [];
    if (members.length < 2) return [{ key: job.jobId, job }];
    if (seen.has(job.batchId)) return [];
    seen.add(job.batchId);
    const line = { key: `batch ${job.batchId}`, job: whole(members, sizeOf(members, hasAll, draw)), isOpened: opened.has(job.batchId) };
    const inner = line.isOpened ? members.slice(0, MOST) : [];
    return [line, ...inner.map((its) => ({ key: its.jobId, job: its, isInner: true }))];
  });
}

function sizeOf(members, hasAll, draw) {
  const [{ batchId }] = members;
  if (hasAll(batchId)) return count(members.length);
  askForSize(batchId, draw);
  const size = sizes.get(batchId);
  return size === null ? `at least ${count(members.length)}` : count(Math.max(size, members.length));
}

// Opens and closes the lines of batches. `draw` shows the list anew.
export function lineRows(columns, draw) {
  const opened = new Set();
  const toggle = (id) => {
    if (!opened.delete(id)) opened.add(id);
    draw();
  };
  const make = ({ job, isInner }) => {
    const made = jobRow(columns, job, { isInner, toggle: job.members ? () => toggle(job.batchId) : null });
    return { ...made, update: (line) => made.update(line.job, line.isOpened) };
  };
  return { of: (jobs, hasAll) => linesOf(jobs, opened, hasAll, draw), make, keyOf: ({ key }) => key };
}
