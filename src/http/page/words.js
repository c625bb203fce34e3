// What the API's words mean, for who reads them at night: plainly, and with what to do next.

import { count } from "./figures.js";

// Each word of `continuity`: what happened, and the weakest export that is exact all the same.
const CONTINUITY = {
  rewound: ["The watermark was set back by hand: the next export sends again what lies behind it.", "delta"],
  no_snapshot: ["The watermark was made by hand: the next export goes by it alone, once.", "delta"],
  watermark_edited: ["The watermark was set forward by hand: the next export goes by it alone, once.", "delta"],
  truncated: ["The table was truncated: which rows it had is not known, so a delta can't name the deletions.", "incremental"],
  deletes_expired: ["It stayed away too long: the log of deletions was given up.", "incremental"],
  file_lost: ["The file of an export was lost before it had its name: what it held was never handed out.", "full"],
  log_expired: ["It stayed away far too long: the log of changes was given up.", "full"],
  mask_removed: ["A column that exports have masked is no masked column any more: put the mask back, or run cdc-export mask drop.", "operator"],
  dataset_changed: ["The catalog, or a function of the filter, says otherwise than before which rows and columns belong to the dataset.", "full"],
  column_retyped: ["A column or its type is another one: values changed that no trigger saw.", "full"],
  table_recreated: ["The table is another one of the same name.", "full"],
  other_cluster: ["The database was restored on another cluster.", "full"],
  database_restored: ["The database was put back or copied, and doesn't know what was handed out since.", "full"],
  xid_went_back: ["The database was restored to an older state.", "full"],
  trigger_missing: ["Nobody has tracked the dataset, or a trigger that captures its changes is missing or disabled. First: cdc-export track.", "full"],
  trigger_changed: ["A trigger that captures changes was gone or disabled for a while.", "full"],
  partitions_changed: ["A partition came or went with its rows.", "full"],
};

const EXACT = {
  delta: "",
  incremental: "Incremental exports are still exact; deltas need a full export first.",
  full: "The next export has to be a full one.",
  operator: "Until then no export of any type is made.",
};

// The weight of a badge, and a sentence.
export function continuity(word) {
  if (word === null) return { weight: "good", label: "exact", meaning: "Every change since its last export is known." };
  const [meaning, needs] = CONTINUITY[word] ?? ["A word that this page doesn't know.", "delta"];
  const weight = { delta: "notice", incremental: "warning", full: "bad", operator: "bad" }[needs];
  return { weight, label: word, meaning: `${meaning} ${EXACT[needs]}`.trim(), needs };
}

const FULL_ONLY = { weight: "notice", label: "full only", meaning: "Nothing looks for changes: each export is a full one." };

// Each state of a lane, the least urgent first.
const STATES = {
  fresh: ["good", ""],
  new: ["notice", "It has no export yet."],
  gone: ["quiet", "There is no dataset of this name any more: its table was renamed or dropped, or the dataset file has it no longer."],
  unknown: ["warning", "How fresh it is isn't known now: its table can't be read, no worker looks, or one export tells nothing of the usual time."],
  not_loaded: ["warning", "Its loader has not acknowledged an export for too long."],
  behind: ["warning", "A change waits longer than it should."],
  not_tracked: ["bad", ""],
  needs_full: ["bad", ""],
  not_published: ["bad", "A committed export waits for its files' names, and later exports wait for it: its job says what to do."],
  failing: ["bad", "It can't be exported now: its dataset says why."],
};

const known = (state) => state ?? "unknown";

export const urgency = (state) => Object.keys(STATES).indexOf(known(state));

// Somebody has to do something.
export const isFaulty = (state) => ["warning", "bad"].includes(STATES[known(state)]?.[0]);

// Where a consumer stands in a dataset: the weight of a badge, its label, and a sentence where there is something to say. `continuity` is
// the reason of some states; where its next export is exact all the same, it is none. `problems`, if they are known, stand against an
// export of the dataset.
export function standing({ state, continuity: word, failures, problems }) {
  const [weight, meaning] = STATES[known(state)] ?? ["notice", "A state that this page doesn't know."];
  const why = word !== null && ["needs_full", "not_tracked"].includes(state) ? continuity(word).meaning : meaning;
  const isUnable = (state === null || (state === "failing" && failures === 0)) && problems?.length > 0;
  const cause = isUnable ? `It can't be exported: ${problems.join("; ")}` : why;
  return { weight, label: known(state).replaceAll("_", " "), meaning: cause };
}

// A table that a pattern matches may be no dataset.
export const isDataset = ({ capture }) => capture !== null;

// How a dataset's changes are found, and what stands against an export of it.
export function tracking({ capture, ready, problems }) {
  if (capture === null) return { weight: "notice", label: "no dataset", meaning: problems.join("; ") };
  if (!ready) return { weight: "bad", label: "not ready", meaning: problems.join("; ") };
  if (capture === "triggers") return { weight: "quiet", label: "triggers", meaning: "Triggers log every change, deletions too." };
  if (capture === "none") return FULL_ONLY;
  return { weight: "notice", label: "timestamp", meaning: "Changes are found by the time in each row alone: what is deleted, or has an old time, is not seen." };
}

// Why the slot of a schedule that is due has no export yet.
export const REFUSED = {
  no_dataset: "No pattern of the datasets file has made the dataset yet. The schedule tries again every second.",
  table_missing: "There is no such table. The schedule tries again every second.",
  permission_denied: "The service's role may not read the table. The schedule tries again every second.",
  not_tracked: "Nobody has tracked the dataset: cdc-export track. The schedule tries again every second.",
  full_only: "The dataset has capture = none: set the schedule's type to full, or heal to true. The schedule tries again every second.",
  too_many_open_jobs: "As many exports are open as there may be. The schedule tries again every second.",
  nothing_ready: "No dataset is ready: cdc-export track --all, or heal = true where capture is none. The schedule tries again every second.",
  too_many_datasets: "More than 1,000 datasets are ready, and a job has at most 1,000: name them in several schedules.",
};

const NEXT = {
  full_export_needed: "Start a full export: it has every live row, and deltas go on from it.",
  storage_full: "Make room in the output folder or bucket, then retry.",
  storage_readonly: "Let the service write to its output folder (permissions, mount) or bucket (policy), then retry.",
  output_missing: "Bring the output folder or bucket back, then retry.",
  storage_unavailable: "See whether the object store can be reached, then retry.",
  file_too_large: "Raise OUTPUT_PART_SIZE, then retry.",
  source_unavailable: "See whether Postgres, or the foreign server that the text tells of, can be reached, then retry.",
  gave_way: "Each attempt kept another session waiting for a lock on the table. See which one the text names, then retry when it is done.",
  too_many_locks: "Raise max_locks_per_transaction in Postgres, or name fewer datasets or partitions, then retry.",
  not_tracked: "Track the dataset first: cdc-export track, with its name. Then retry.",
  full_only: "Start a full export.",
  table_missing: "Make the table, or take its dataset out of the catalog.",
  dataset_mismatch: "Mend what the text names in the table or the catalog: cdc-export datasets check.",
  permission_denied: "Give the service's role the right that the text names, then retry.",
  invalid_text: "Mend the value in the column that the text names, then retry.",
  row_too_large: "Raise CELL_MAX_BYTES or leave the column out (exclude), then retry.",
  value_unreadable: "A select of its columns fails too: mend the row, or the query of a view, or leave the column out (exclude). Then retry.",
  not_in_format: "Export as csv or ndjson, which have a form for every value.",
  file_lost: "Start a full export: what this one held was never handed out. See who removes files from the output folder, or what rule from the bucket.",
  not_published: "Bring the output folder or bucket back. If it is gone for good, give the export up by the command below.",
  watermark_changed: "Somebody moves this consumer's watermark while its exports run. Retry when that is over.",
  other_dataset_failed: "The export of a dataset that this key may not see ended the job. Ask somebody whose key is for all datasets of the job.",
  dataset_unknown: "No process has its dataset any more: put it into the datasets file again.",
  attempts_exhausted: "Its workers vanished each time: look into their logs and memory limits, then retry.",
  internal: "A defect of the service: its log has the cause. Retry once, then report it.",
};

// Whether a full export goes on where a retry would fail again.
export function healedByFull(job) {
  return job.consumerId !== null && ["full_export_needed", "file_lost"].includes(job.error?.code);
}

// Whether a lane goes on with a full export alone.
export function needsFull({ state }) {
  return state === "needs_full";
}

// The exports of a job. A job of one dataset has the members of its export itself.
export const exportsOf = (job) => job.exports ?? [job];

// The dataset that a failed job failed by.
export const failedDataset = (job) => job.error.dataset ?? job.dataset;

// Marks each failed job of a list whose consumer is helped already: by a job that is open, or by a later export of that
// type or of all rows. `others` are jobs of the same consumers and datasets.
export function withHelp(jobs, others) {
  const helps = (job) => (other) => {
    const same = other.consumerId === job.consumerId && exportsOf(other).find(({ dataset }) => dataset === failedDataset(job));
    return same && (isOpen(other) || (other.status === "completed" && other.createdAt > job.createdAt && ["full", job.exportType].includes(same.exportType)));
  };
  return jobs.map((job) => (healedByFull(job) && others.some(helps(job)) ? { ...job, isHelped: true } : job));
}

export function whatNext({ code, detail }) {
  const first = code === "full_export_needed" && detail.includes("cdc-export") ? "Run the command that the error names. Then: " : "";
  return first + (NEXT[code] ?? "Look into the service's log, then retry.");
}

export const TYPES = {
  full: "every live row",
  incremental: "the live rows that changed since the watermark",
  delta: "the rows that changed since the watermark, deleted ones too, each with its operation",
};

export const STATUS = {
  pending: { weight: "notice", meaning: "It waits for a worker, or for its consumer's earlier exports." },
  processing: { weight: "running", meaning: "A worker exports it." },
  completed: { weight: "good", meaning: "Each file is whole and on disk." },
  skipped: { weight: "good", meaning: "It found nothing, and made no file." },
  failed: { weight: "bad", meaning: "It ended with an error." },
  cancelled: { weight: "quiet", meaning: "It was cancelled, and moved no watermark." },
};

// What a job that a worker runs does.
export const PHASE = {
  reading: "Postgres looks for its rows.",
  writing: "Its rows are being written.",
  publishing: "Its rows are on disk, and its files get their names.",
};

// What an open job is called from the click on until its worker has stopped.
export const CANCELLING = { weight: "quiet", meaning: "It was asked to stop, and will have stopped in a moment." };

export function consumerPath(id) {
  return `#/consumers/${encodeURIComponent(id)}`;
}

export function datasetPath(name) {
  return `#/datasets/${encodeURIComponent(name)}`;
}

export const CONSUMER_ID = "A consumer id has 1 to 128 of A-Z a-z 0-9 . _ : @ - and begins with a letter or a digit.";

export const isConsumerId = (id) => /^[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}$/.test(id);

// The export of a job with only one, for its files.
export const onlyExport = (job) => (job.exports?.length === 1 ? { ...job.exports[0], jobId: job.jobId, isOneOf: true } : job);

export function hasFile(job) {
  return job.status === "completed" && !job.skipped;
}

export function isOpen(job) {
  return job.status === "pending" || job.status === "processing";
}

// The dataset of a job, or the number of its datasets.
export function datasetsOf(job) {
  const [first, ...others] = exportsOf(job);
  return others.length === 0 ? first.dataset : `${count(others.length + 1)} datasets`;
}

export function title(job) {
  const whose = job.consumerId === null ? "ad hoc" : `for ${job.consumerId}`;
  return `${job.exportType} export of ${datasetsOf(job)}, ${whose}`;
}

// What an error of a call adds to its detail, which is shown as it is.
export function hint(error) {
  switch (error.code) {
    case "scope_missing":
      return "Whoever runs the service can make a key that has it: cdc-export keys create --scope …";
    case "consumer_not_allowed":
      return "Keys are bound to consumers: use one of this key's, or another key.";
    case "dataset_not_allowed":
      return "Keys are bound to datasets: use one of this key's, or another key.";
    case "too_many_open_jobs":
      return "Wait until some of them have ended, or cancel them.";
    default:
      return "";
  }
}
