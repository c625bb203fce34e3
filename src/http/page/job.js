// One job's whole story: what was asked for, how it went, what its files are, and the commands to do it again.

import { Problem, follow, get, jobPath } from "./api.js";
import { actions, complaints } from "./actions.js";
import { checking, copying, describing, downloading, following, givingUp, retrying, starting } from "./curl.js";
import { downloadOf } from "./download.js";
import { el, keyed, once, say, show, text } from "./dom.js";
import { about, bytes, count, duration, rows, utc, when } from "./figures.js";
import { jobExports } from "./jobexports.js";
import { progressBar, speed, statusBadge } from "./jobrow.js";
import { PHASE, STATUS, TYPES, consumerPath, continuity, datasetPath, datasetsOf, failedDataset, hasFile, healedByFull, isOpen, title, whatNext, withHelp } from "./words.js";

// What has ended stays as it is; the page only looks whether the service is there.
const ENDED_SECONDS = 30;

// So many of the newest exports of its lane tell whether something followed it.
const FOLLOWERS = 50;

// As many files are listed; for more there is the command.
const LISTED = 100;

export function jobView(id, onMade) {
  const heading = el("h1", {}, "Export");
  const status = statusBadge();
  const bar = progressBar();
  const going = el("p", { class: "going" });
  const does = actions({ onMade, changed: () => update(known), listsFiles: true });
  const failure = el("div", { class: "failure", hidden: true });
  const exports = jobExports();
  const timeline = el("ol", { class: "timeline" });
  const members = el("dl", {});
  const files = el("ol", { class: "files" });
  const filesWords = complaints();
  const commands = el("div", {});
  const raw = el("code", {});
  const story = el(
    "div",
    {},
    el("div", { class: "top" }, status.node, bar.node, does.node),
    going,
    failure,
    exports.node,
    el(
      "div",
      { class: "halves" },
      el("section", { "aria-labelledby": "timeline-heading" }, el("h2", { id: "timeline-heading" }, "What happened"), timeline),
      el("section", { "aria-labelledby": "members-heading", class: "tall" }, el("h2", { id: "members-heading" }, "What it is"), members),
      el("section", { "aria-labelledby": "files-heading", hidden: true }, el("h2", { id: "files-heading" }, "Its files"), filesWords.node, files),
      el("section", { "aria-labelledby": "again-heading" }, el("h2", { id: "again-heading" }, "By hand"), commands),
    ),
    el("details", {}, el("summary", {}, "As the API has it"), el("pre", { tabindex: "0" }, raw)),
  );
  const missing = el("p", { class: "empty", hidden: true });
  const node = el("article", { class: "job" }, el("p", {}, el("a", { href: "#/" }, "← Overview")), heading, missing, story);
  let known = null;
  // The digest of the export before it in its lane, once its manifest has told.
  let before;
  let isHelped = false;

  // Whether something followed in the lane that it failed in.
  async function lookAhead(signal) {
    if (!healedByFull(known)) return;
    const { items } = await get("/exports", { consumer: known.consumerId, dataset: failedDataset(known), limit: FOLLOWERS }, signal);
    isHelped = withHelp([known], items)[0] !== known;
    update(known);
  }

  async function lookBack(signal) {
    if (before !== undefined || isOpen(known) || !known.digest) return;
    const { export: described } = await get(jobPath(id, "/manifest"), {}, signal);
    before = described.previous;
    update(known);
  }

  function update(job) {
    if (known !== null && isOpen(known) && !isOpen(job)) say(`${job.status}: ${title(job)}, ${rows(job.rowsExported)}`);
    known = job;
    show(story, true);
    show(missing, false);
    const name = title(job);
    text(heading, name[0].toUpperCase() + name.slice(1));
    document.title = `${job.status}: ${name} – cdc-export`;
    status.update(job);
    bar.update(job);
    does.update({ ...job, isHelped });
    text(going, goingOn(job));
    show(failure, job.error !== null);
    // Made anew only where it changed: somebody may be about to copy out of it, or have the focus there.
    once(failure, JSON.stringify(job.error), () => failureOf(job));
    once(timeline, [job.status, job.attempt, job.startedAt, job.finishedAt, job.nextAttemptAt, job.cancelRequestedAt].join(), () => timelineOf(job));
    keyed(members, membersOf(job, before), ([name]) => name, memberRow);
    if (job.exports) exports.update(job);
    show(files.parentElement, job.files?.length > 1);
    if (job.files) once(files, `${job.jobId} ${job.files.length}`, () => filesOf(job, filesWords.complain));
    once(commands, `${job.jobId} ${job.status} ${job.error?.code}`, () => commandsOf(job));
    text(raw, JSON.stringify(job, null, 2));
  }

  async function beat(signal, alive) {
    try {
      const heard = (job) => {
        update(job);
        alive();
      };
      heard(await get(jobPath(id), {}, signal));
      await lookBack(signal);
      await lookAhead(signal);
      if (!isOpen(known)) return ENDED_SECONDS;
      await follow(id, heard, signal);
      await lookBack(signal);
      await lookAhead(signal);
      // Its end, or a stream that ended before: the next look tells.
      return isOpen(known) ? 1 : ENDED_SECONDS;
    } catch (error) {
      if (!(error instanceof Problem)) throw error;
      // Too many follow jobs as it is: then it is asked for now and then.
      if (error.code === "too_many_followers") return 2;
      if (error.status !== 404) throw error;
      text(missing, `${error.message}. It may have been removed by RETAIN_JOBS, or belong to a consumer that this key is not for.`);
      show(missing, true);
      show(story, false);
      return ENDED_SECONDS;
    }
  }
  return { node, heading, beat };
}

function goingOn(job) {
  const { rate, left } = speed(job);
  const parts = [PHASE[job.phase] ?? STATUS[job.skipped ? "skipped" : job.status]?.meaning];
  if (job.status === "processing") {
    const all = job.rowsExpected ? ` of about ${count(job.rowsExpected)}` : "";
    parts.push(`${rows(job.rowsExported)}${all}, ${bytes(job.bytesWritten)} so far.`);
    if (rate !== null) parts.push(`${count(Math.round(rate))} rows/s${left === null ? "" : `, ${about(left)} left`}.`);
  }
  return parts.join(" ");
}

// A word with its cause and remedy behind it.
function symptom(word) {
  return el("a", { class: "code", href: `/symptoms#${word}` }, word);
}

function failureOf(job) {
  if (job.error === null) return [];
  return [
    el("p", {}, el("strong", {}, symptom(job.error.code)), job.error.dataset ? ` in ${job.error.dataset}` : ""),
    el("p", {}, job.error.detail),
    el("p", {}, el("b", {}, "What to do: "), whatNext(job.error)),
  ];
}

function timelineOf(job) {
  const step = (kind, label, at, more) => el("li", { class: kind }, el("b", {}, label), at && " ", at && exactly(at), more && el("span", { class: "meaning" }, more));
  const between = (from, to) => duration(Math.max(0, (Date.parse(to) - Date.parse(from)) / 1000));
  const steps = [step("done", "Asked for", job.createdAt, job.retryOf === null ? null : "as a retry of an earlier one")];
  if (job.startedAt !== null) {
    const attempt = job.attempt > 1 ? `attempt ${job.attempt}; ` : "";
    steps.push(step("done", "Started", job.startedAt, `${attempt}${between(job.createdAt, job.startedAt)} after it was asked for`));
  } else if (job.finishedAt === null) {
    steps.push(step("next", job.nextAttemptAt ? `Waits for attempt ${job.attempt + 1}` : "Waits for its turn", job.nextAttemptAt, STATUS.pending.meaning));
  }
  if (job.cancelRequestedAt !== null) steps.push(step("done", "Cancel asked for", job.cancelRequestedAt, null));
  if (job.finishedAt !== null) {
    const took = job.durationSeconds === null ? null : `after ${duration(job.durationSeconds)}`;
    steps.push(step(`done ${STATUS[job.status].weight}`, job.status[0].toUpperCase() + job.status.slice(1), job.finishedAt, took));
  } else if (job.startedAt !== null) {
    const label = job.status === "pending" ? `Waits for attempt ${job.attempt + 1}` : "Running";
    steps.push(step("next", label, job.nextAttemptAt, null));
  }
  return steps;
}

function exactly(time) {
  const age = when(time);
  return el("span", { class: "exactly" }, age, el("span", { class: "quiet" }, utc(time)));
}

function membersOf(job, before) {
  const adHoc = job.consumerId === null;
  const none = (why) => el("span", { class: "quiet" }, why);
  const heals = job.heal ? "; a full export where another one can't go on" : "";
  return [
    ["Consumer", adHoc ? none("none: an ad-hoc export, which reads and moves no watermark") : el("a", { href: consumerPath(job.consumerId) }, job.consumerId)],
    job.exports ? ["Datasets", `${datasetsOf(job)}, read at one moment`] : ["Dataset", el("a", { href: datasetPath(job.dataset) }, job.dataset)],
    ["Type", `${job.exportType}: ${TYPES[job.exportType]}${heals}`],
    ["Rows", count(job.rowsExported)],
    ["Format", job.compression === "none" ? job.format : `${job.format}, ${job.compression}`],
    ["Size", `${count(job.bytesWritten)} bytes`],
    ...(job.exports ? [["Left out", leftOutOf(job, none)]] : exportMembersOf(job, before, none)),
    ["Attempts", job.attempt === 0 ? "none yet" : count(job.attempt)],
    ["Retry of", job.retryOf === null ? none("no other") : el("a", { href: `#/jobs/${job.retryOf}` }, job.retryOf)],
    ["Id", el("code", {}, job.jobId)],
  ];
}

// The datasets that a job of all datasets has no export of.
function leftOutOf({ leftOut }, none) {
  return leftOut.length === 0 ? none("none") : leftOut.map(({ dataset, reason }) => `${dataset} (${reason})`).join(", ");
}

function exportMembersOf(job, before, none) {
  const says = continuity(job.continuity);
  const adHoc = job.consumerId === null;
  return [
    ["File", job.files.length > 1 ? none(`${count(job.files.length)} files, each whole by itself`) : job.skipped ? none("none: there was nothing to export") : [el("code", {}, job.outputFilename), job.status === "completed" ? null : none(isOpen(job) ? " is there when it is completed" : " was not made")]],
    ["SHA-256", job.sha256 === null ? none(shaless(job)) : el("code", {}, job.sha256)],
    ["Watermark", watermarkOf(job, none)],
    ["Continuity", job.continuity === null ? none("nothing stood between the last export and this one") : [symptom(job.continuity), ` ${says.meaning}`]],
    ["Late rows", job.lateRows === 0 ? none("none") : `${count(job.lateRows)}: changed before the watermark by their own times, and found by the log alone (late commits, back-dated rows, hard deletes)`],
    ["Deleted quietly", job.quietDeletes === 0 ? none("none") : `${count(job.quietDeletes)}: rows that the source deleted and no delta tells of (cdc_export.quiet)`],
    ["Open transactions", openOf(job, none)],
    ["Columns", job.schemaChanged ? "changed since this consumer's last export: look whether its reader knows them" : none("no change seen")],
    ["Table", job.tableRewritten ? "written anew since the last export, as VACUUM FULL does" : none("no rewrite seen")],
    ["Number", adHoc ? none("none: an ad-hoc export has no order") : job.number === null ? none(isOpen(job) ? "known when it is completed" : "none") : `${count(job.number)} of the published exports of ${job.dataset} for this consumer, in the order to load them in`],
    ["Acknowledged", acknowledgedOf(job, none)],
    ["Digest", adHoc ? none("none: an ad-hoc export is in no chain") : digestOf(job, before, none)],
  ];
}

function shaless(job) {
  if (isOpen(job)) return "known when it is completed";
  return job.files.length > 1 ? `each of its ${count(job.files.length)} files has its own` : "there is no file";
}

// Whether its consumer has said that it is loaded.
function acknowledgedOf(job, none) {
  if (job.consumerId === null) return none("an ad-hoc export has nobody who would");
  if (!hasFile(job)) return none(isOpen(job) ? "may be when it is completed" : "there is nothing to load");
  if (job.acknowledged === null) return none("not known: this consumer has never acknowledged an export of the dataset");
  return job.acknowledged ? "yes: this export is loaded, and all before it" : "not yet: nobody has said that this export is loaded";
}

// The digest of its manifest, and what it says came before.
function digestOf(job, before, none) {
  if (job.digest === null) return none(isOpen(job) ? "known when it is completed" : "none: it has no manifest");
  const own = el("code", {}, job.digest);
  if (before === undefined) return own;
  return before === null ? [own, none("; the first of its chain")] : [own, none("; after "), el("code", {}, before)];
}

function filesOf(job, complain) {
  const listed = job.files.slice(0, LISTED).map((file) =>
    el("li", {}, el("code", {}, file.name), el("span", { class: "quiet" }, ` ${bytes(file.bytes)}, ${rows(file.rows)} `), downloadOf(job, "Download", complain, file)),
  );
  const others = job.files.length - listed.length;
  return others > 0 ? [...listed, el("li", { class: "quiet" }, `and ${count(others)} more: the command fetches all`)] : listed;
}

function memberRow([name]) {
  const value = el("dd", {});
  const update = ([, made]) => {
    const fresh = el("dd", {}, made);
    if (fresh.textContent !== value.textContent) value.replaceChildren(...fresh.childNodes);
  };
  return { node: el("div", {}, el("dt", {}, name), value), update };
}

function watermarkOf(job, none) {
  if (job.consumerId === null) return none("not moved");
  const at = (time) => el("time", { datetime: time }, utc(time));
  // An export that ended without a file may not have come as far as to read it.
  if (job.status !== "completed") {
    const stays = none(isOpen(job) ? "moves when this is completed" : "not moved");
    return job.watermarkFrom === null ? stays : [at(job.watermarkFrom), none("; "), stays];
  }
  const from = job.watermarkFrom === null ? none("none") : at(job.watermarkFrom);
  if (job.watermarkTo === null) return [from, none("; not moved: no row had a time")];
  return job.watermarkTo === job.watermarkFrom ? [from, none("; not moved")] : [from, " → ", at(job.watermarkTo)];
}

function openOf(job, none) {
  if (job.openTransactions === null) return none(isOpen(job) ? "not known yet" : "not known");
  if (job.openTransactions === 0) return none("none");
  const oldest = job.oldestTransactionSeconds === null ? "" : `, the oldest for ${duration(job.oldestTransactionSeconds)}`;
  return `${count(job.openTransactions)}${oldest}: what they change belongs to the next export`;
}

function commandsOf(job) {
  const isHealed = healedByFull(job) && job.status === "failed";
  const healed = job.exports ? ["Ask for full exports where needed", { ...job, heal: true }] : ["Ask for a full export", { ...job, exportType: "full" }];
  const [again, fields] = isHealed ? healed : ["Ask for another one like it", job];
  const list = [[again, starting(fields)]];
  if (isOpen(job)) list.push(["Wait for its end", following(job)]);
  if (job.error?.code === "not_published") list.push(["Give it up", givingUp(job)]);
  if (hasFile(job) && !job.exports) {
    const [its, the] = job.files.length > 1 ? ["Fetch its files", "Check the files"] : ["Fetch its file", "Check the file"];
    list.push([its, downloading(job)], [the, checking(job)]);
    if (job.digest !== null) list.push(["See its manifest", describing(job)]);
  }
  if (!isHealed && ["failed", "cancelled"].includes(job.status)) list.push(["Retry it", retrying(job)]);
  const made = list.map(([label, command]) => el("div", { class: "command" }, el("h3", {}, label), el("pre", { tabindex: "0" }, el("code", {}, command)), copying(label, () => command)));
  if (job.consumerId === null) made.push(el("p", { class: "hint" }, "Columns, filter and limit of an ad-hoc export are not told by the API: add them if it had some."));
  return made;
}
