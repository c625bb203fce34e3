// What may be done with a job: cancel, retry, download. What the service says against it stands next to the button.

import { Problem, call, jobPath, submission } from "./api.js";
import { dialog, el, once, say, show, text } from "./dom.js";
import { downloadOf } from "./download.js";
import { wake } from "./pulse.js";
import { hint, isOpen, title } from "./words.js";

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

// A submission that keeps its name until it is known whether it made a job.
export function submitting(path, options, done) {
  let pending = null;
  return async () => {
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

// The buttons of a job, kept as its status wants them. `onRetry` gets the id of the new job.
export function actions(onRetry = () => {}) {
  const { node: complaint, complain } = complaints();
  const buttons = el("div", { class: "buttons" });
  const node = el("div", { class: "actions" }, buttons, complaint);
  const update = (job) => {
    const kind = isOpen(job) ? "open" : job.status === "completed" ? "file" : "again";
    once(buttons, `${job.jobId} ${kind}`, () => {
      complain(null);
      if (kind === "open") return acting("Cancel", title(job), complain, () => cancelled(job));
      if (kind === "file") return downloadOf(job, "Download", complain);
      const retry = submitting(jobPath(job.jobId, "/retry"), {}, (made) => {
        onRetry(made.jobId);
        return `retried: ${title(job)}`;
      });
      return acting("Retry", title(job), complain, retry);
    });
  };
  return { node, update };
}

// Hours of work may be lost by a slip, so it asks. Resolves to what is to be said.
async function cancelled(job) {
  const sure = await new Promise((resolve) => {
    const opened = dialog(
      "Cancel this export?",
      el("p", {}, `The ${title(job)}. What it has written so far is dropped, and the watermark stays where it is.`),
      el(
        "p",
        { class: "buttons" },
        el("button", { type: "button", class: "danger", onclick: () => opened.close("yes") }, "Cancel the export"),
        el("button", { type: "button", onclick: () => opened.close("no") }, "Let it run"),
      ),
    );
    opened.addEventListener("close", () => resolve(opened.returnValue === "yes"));
  });
  if (!sure) return null;
  await call("POST", jobPath(job.jobId, "/cancel"));
  return `cancelled: ${title(job)}`;
}
