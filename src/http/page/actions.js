// What may be done with a job: cancel, retry, download. What the service says against it stands next to the button.

import { Problem, call, cancelling, get, isLeaving, jobPath, submission } from "./api.js";
import { el, once, say, set, show, text } from "./dom.js";
import { downloadOf } from "./download.js";
import { count } from "./figures.js";
import { wake } from "./pulse.js";
import { mayMove, question } from "./question.js";
import { datasetsOf, hasFile, healedByFull, hint, isOpen, onlyExport, title } from "./words.js";

// A place for an error's words, and the function that fills it.
export function complaints() {
  const node = el("p", { class: "error", role: "alert", hidden: true });
  const complain = (error) => {
    text(node, error === null ? "" : `${error.message} ${hint(error)}`.trim());
    show(node, error !== null);
  };
  return { node, complain };
}

// A button that calls, once at a time; `call` gives what is to be said when it is done.
export function acting(label, about, complain, act, attributes = {}) {
  const button = el(
    "button",
    { type: "button", onclick: () => run(), ...attributes },
    label,
    el("span", { class: "unseen" }, ` ${about}`),
  );
  const run = async () => {
    complain(null);
    // Not `disabled`, which would take the focus away from who works by keyboard.
    if (button.getAttribute("aria-busy") === "true") return;
    button.setAttribute("aria-busy", "true");
    try {
      const said = await act();
      if (said) say(said);
      wake();
    } catch (error) {
      complain(error);
    } finally {
      button.removeAttribute("aria-busy");
    }
  };
  return button;
}

// A submission that keeps its name until it is known whether it made a job. `may` says whether to go on with it.
export function submitting(path, options, done, may = async () => true) {
  let pending = null;
  return async () => {
    if (pending === null && !(await may())) return null;
    pending ??= submission(path, options);
    try {
      const job = await pending();
      pending = null;
      return done(job);
    } catch (error) {
      if (error instanceof Problem && error.status < 500) pending = null;
      throw error;
    }
  };
}

// An export of the same kind as `job`, with these members of the body beside.
function likeIt({ consumerId, format, compression, maxFileBytes }, members) {
  return { headers: { "X-Consumer-ID": consumerId }, body: { ...members, format, compression, ...(maxFileBytes ? { maxFileBytes } : {}) } };
}

// What heals a job's lane, or those of several datasets, where a retry would fail in the same way.
function healing(job, onMade, complain) {
  const { consumerId, dataset } = job;
  if (!job.exports) {
    const full = submitting("/exports/full", likeIt(job, { dataset }), (made) => {
      onMade(made.jobId);
      return `started: full export of ${dataset} for ${consumerId}`;
    });
    return acting("Start a full export", `of ${dataset} for ${consumerId}`, complain, full, { class: "main" });
  }
  const options = likeIt(job, { datasets: job.exports.map((of) => of.dataset), heal: true });
  const again = submitting(`/exports/${job.exportType}`, options, (made) => {
    onMade(made.jobId);
    return `started: ${title(job)}`;
  }, () => mayMove({ ...job, heal: true }));
  return acting("Retry with full exports", `where needed: ${title(job)}`, complain, again, { class: "main" });
}

// Starts full exports of these lanes of a consumer, as one job.
export function healingLanes(consumerId, lanes, lastJob, complain) {
  const job = { ...lastJob, consumerId, exportType: "full", exports: lanes };
  const full = submitting("/exports/full", likeIt(job, { datasets: lanes.map(({ dataset }) => dataset) }), () => `started: ${title(job)}`, () => mayMove(job));
  return acting(`${count(lanes.length)} full exports…`, `of ${datasetsOf(job)} for ${consumerId}`, complain, full, { class: "main" });
}

function retrying(job, onMade, complain) {
  const retry = submitting(jobPath(job.jobId, "/retry"), {}, (made) => {
    onMade(made.jobId);
    return `retried: ${title(job)}`;
  }, () => mayMove(job));
  return acting("Retry", title(job), complain, retry);
}

// The buttons of a job, kept as its status wants them. `onMade` gets the id of a new job that one of them has made, `changed` is
// called when the job is to be shown anew. `listsFiles`: several files have their links elsewhere.
export function actions({ onMade = () => {}, changed, listsFiles = false }) {
  const { node: complaint, complain } = complaints();
  const buttons = el("div", { class: "buttons" });
  const node = el("div", { class: "actions" }, buttons, complaint);
  let asked = null;
  let cancel = null;

  // Hours of work may be lost by a slip, so it asks, for as long as the job can be cancelled.
  async function cancelled(job) {
    if (isLeaving(job)) return null;
    asked = question({
      title: "Cancel this export?",
      text: `The ${title(job)}. What it has written so far is dropped, and no watermark moves.`,
      yes: "Cancel the export",
      no: "Let it run",
      weight: "danger",
    });
    const sure = await asked.answer;
    asked = null;
    if (!sure) return null;
    cancelling.add(job.jobId);
    changed();
    try {
      await call("POST", jobPath(job.jobId, "/cancel"));
    } catch (error) {
      cancelling.delete(job.jobId);
      changed();
      throw error;
    }
    return `cancelling: ${title(job)}`;
  }

  // A row that goes away may be one that ended, or one that others have taken the place of.
  function gone(job) {
    if (asked !== null) get(jobPath(job.jobId)).then((now) => isOpen(now) || asked?.drop(), () => {});
  }

  const update = (job) => {
    if (!isOpen(job)) {
      cancelling.delete(job.jobId);
      asked?.drop();
    }
    const heal = job.isHelped ? "none" : "heal";
    const again = healedByFull(job) ? heal : "again";
    const only = onlyExport(job);
    const kind = isOpen(job) ? "open" : hasFile(job) && !only.exports ? "file" : job.status === "completed" ? "none" : again;
    once(buttons, `${job.jobId} ${kind}`, () => {
      complain(null);
      if (kind === "open") return (cancel = acting("Cancel", title(job), complain, () => cancelled(job)));
      if (kind === "file" && only.files.length > 1) {
        if (listsFiles) return [];
        return el("a", { class: "button", href: `#/jobs/${job.jobId}` }, `${only.files.length} files`, el("span", { class: "unseen" }, ` of the ${title(job)}`));
      }
      if (kind === "none") return [];
      if (kind === "file") return downloadOf(only, "Download", complain);
      return (kind === "heal" ? healing : retrying)(job, onMade, complain);
    });
    if (kind === "open") set(cancel, "aria-disabled", isLeaving(job) && "true");
  };
  return { node, update, gone };
}
