// What the page asks before it does something that somebody may lose by. The answer that changes nothing has the focus.

import { get } from "./api.js";
import { dialog, el } from "./dom.js";
import { bytes, rows } from "./figures.js";
import { datasetsOf } from "./words.js";

// `asked` has title, text, yes, no and the weight of the button that says yes. Gives the answer to come, and a function that takes
// the question away, as if it had been answered with no.
export function question(asked) {
  const button = (answer, label, weight) => el("button", { type: "button", class: weight, onclick: () => opened.close(answer) }, label);
  const safe = button("no", asked.no, null);
  const opened = dialog(asked.title, el("p", {}, asked.text), el("p", { class: "buttons" }, button("yes", asked.yes, asked.weight), safe));
  safe.focus();
  const answer = new Promise((resolve) => opened.addEventListener("close", () => resolve(opened.returnValue === "yes")));
  return { answer, drop: () => opened.close("no") };
}

const CALLED = { full: ["a full export", "full exports"], incremental: ["an incremental export", "incremental exports"], delta: ["a delta", "deltas"] };

// Whether an export is to be asked for that moves its consumer's position: a loader that goes on with the next one would miss what
// this one's file holds. A first full export is asked for at once: before it there is nothing to go on from.
// `table`, if it is known, says what a full export reads. With `heal` some exports of a job may be full ones.
export async function mayMove(job) {
  const { exportType, consumerId, dataset, exports, format, compression, table, heal } = job;
  if (consumerId === null) return true;
  const areSeveral = exports?.length > 1;
  if (exportType === "full") {
    const { items } = await get("/exports", { consumer: consumerId, dataset: exports ? null : dataset, status: "completed", limit: 1 });
    if (items.length === 0) return true;
  }
  const called = CALLED[exportType]?.[areSeveral ? 1 : 0] ?? exportType;
  const packed = `${format}${compression && compression !== "none" ? `, ${compression}` : ""}`;
  const one = `It moves ${consumerId}'s position in ${datasetsOf(job)}: its loader must fetch this file, because the next export begins where this one ends.`;
  const several = `They move ${consumerId}'s positions in ${datasetsOf(job)}: its loader must fetch these files, because the next exports begin where these end.`;
  return question({
    title: `Start ${called} for ${consumerId}${heal ? ", with full exports where needed" : ""}?`,
    text: [
      areSeveral ? several : one,
      exportType === "full" && table?.rows ? ` It reads the whole table, about ${rows(table.rows)} (${bytes(table.bytes)}).` : "",
      format ? ` ${areSeveral ? "The files are" : "The file is"} ${packed}.` : "",
    ].join(""),
    yes: areSeveral ? "Start them" : "Start it",
    no: "Not now",
    weight: "main",
  }).answer;
}
