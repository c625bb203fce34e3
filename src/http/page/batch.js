// One batch: exports of several datasets that are read at one moment, and complete together or not at all.

import { actions } from "./actions.js";
import { Problem, get } from "./api.js";
import { el, keyed, once, show, table, text } from "./dom.js";
import { bytes, count, rows, when } from "./figures.js";
import { columns, jobRow, keyOf, progressBar, statusBadge } from "./jobrow.js";
import { whole } from "./lines.js";
import { OPEN_SECONDS } from "./pulse.js";
import { STATUS, TYPES, batchPath, consumerPath, healedByFull, isOpen, title, whatNext, withHelp } from "./words.js";

const ENDED_SECONDS = 30;
const STEP = 50;
const LATER = 10;
const ORDER = ["failed", "processing", "pending", "cancelled", "completed"];

export function batchView(id, onMade) {
  const shown = columns(true);
  const heading = el("h1", {}, "Batch");
  const status = statusBadge();
  const bar = progressBar();
  const going = el("p", { class: "going" });
  const does = actions({ onMade, changed: () => known && update(known) });
  const failure = el("div", { class: "failure", hidden: true });
  const facts = el("dl", {});
  const list = table("Its exports", shown);
  const more = el("button", { type: "button", hidden: true, onclick: () => ((limit += STEP), update(known)) });
  const missing = el("p", { class: "empty", hidden: true });
  const story = el(
    "div",
    {},
    el("div", { class: "top" }, status.node, bar.node, does.node),
    going,
    failure,
    el("section", { "aria-labelledby": "facts-heading" }, el("h2", { id: "facts-heading" }, "What it is"), facts),
    el("section", { "aria-labelledby": "members-heading" }, el("h2", { id: "members-heading" }, "Its exports"), list.node, more),
  );
  const node = el("article", { class: "job" }, el("p", {}, el("a", { href: "#/exports" }, "← Exports")), heading, missing, story);
  let limit = STEP;
  let known = null;
  // The consumer's newest exports, if the batch needed full ones.
  let later = [];

  function update(batch) {
    known = batch;
    const all = { ...whole(withHelp(batch.jobs, later)), exportType: batch.exportType, status: batch.status, progress: batch.progress };
    const name = title(all);
    text(heading, name[0].toUpperCase() + name.slice(1));
    document.title = `${batch.status}: ${name} – cdc-export`;
    status.update(all);
    bar.update(all);
    does.update(all);
    const done = batch.jobs.filter((job) => job.progress === 100 || !isOpen(job)).length;
    text(going, isOpen(batch)
      ? `${STATUS[batch.status].meaning} ${count(done)} of ${count(batch.jobs.length)} are written: ${rows(batch.rowsExported)}, ${bytes(batch.bytesWritten)} so far.`
      : `${rows(batch.rowsExported)}, ${bytes(batch.bytesWritten)}.`);
    show(failure, batch.error !== null);
    once(failure, JSON.stringify(batch.error), () => failureOf(batch.error));
    once(facts, `${batch.status} ${batch.leftOut.length}`, () => factsOf(batch, all));
    // What failed is looked for first.
    const members = batch.jobs.toSorted((one, other) => ORDER.indexOf(one.status) - ORDER.indexOf(other.status) || Number(isCause(other)) - Number(isCause(one)));
    keyed(list.body, members.slice(0, limit), keyOf, (job) => jobRow(shown, job, { isInner: true }));
    show(more, members.length > limit);
    text(more, `Show more of ${count(members.length)} exports`);
  }

  async function beat(signal) {
    try {
      const batch = await get(`/batches/${encodeURIComponent(id)}`, {}, signal);
      const needy = batch.jobs.find(healedByFull);
      later = needy ? (await get("/exports", { consumer: batch.consumerId, dataset: needy.dataset, limit: LATER }, signal)).items : [];
      update(batch);
      // A large one costs more to ask for.
      return isOpen(known) ? Math.max(OPEN_SECONDS, known.jobs.length / STEP) : ENDED_SECONDS;
    } catch (error) {
      if (!(error instanceof Problem) || error.status !== 404) throw error;
      text(missing, `${error.message}. It may have been removed by RETAIN_JOBS, or have exports that this key is not for.`);
      show(missing, true);
      show(story, false);
      return ENDED_SECONDS;
    }
  }
  return { node, heading, beat, title: "Batch – cdc-export", name: "batch", under: "exports" };
}

const isCause = (job) => job.error !== null && job.error.code !== "batch_member_failed";

function failureOf(error) {
  if (error === null) return [];
  return [
    el("p", {}, el("strong", {}, el("code", {}, error.code)), error.member === null ? "" : ` in ${error.member}`),
    el("p", {}, error.detail),
    el("p", {}, el("b", {}, "What to do: "), whatNext(error)),
  ];
}

function factsOf(batch, all) {
  const ended = all.finishedAt === null ? null : when(all.finishedAt);
  const list = [
    ["Consumer", el("a", { href: consumerPath(batch.consumerId) }, batch.consumerId)],
    ["Type", `${batch.exportType}: ${TYPES[batch.exportType]}${batch.heal ? "; a full export where another one can't go on" : ""}`],
    ["Asked for", when(all.createdAt)],
    ["Ended", ended],
    ["Retry of", batch.retryOf && el("a", { href: batchPath(batch.retryOf) }, batch.retryOf)],
    ["Left out", batch.leftOut.length === 0 ? null : batch.leftOut.map(({ dataset, reason }) => `${dataset} (${reason})`).join(", ")],
    ["Id", el("code", {}, batch.batchId)],
  ];
  return list.filter(([, value]) => value !== null).map(([term, value]) => el("div", {}, el("dt", {}, term), el("dd", {}, value)));
}
