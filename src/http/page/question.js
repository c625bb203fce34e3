// What the page asks before it does something that somebody may lose by. The answer that changes nothing has the focus.

import { get } from "./api.js";
import { dialog, el } from "./dom.js";
import { bytes, rows } from "./figures.js";

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

const CALLED = { full: "a full export", incremental: "an incremental export", delta: "a delta" };

// Whether an export is to be asked for that moves its consumer's position: a loader that goes on with the next one would miss what
// this one's file holds. A first full export is asked for at once: before it there is nothing to go on from.
// `table`, if it is known, says what a full export reads.
export async function mayMove({ exportType, consumerId, dataset, format, compression, table, members }) {
  if (consumerId === null) return true;
  if (exportType === "full") {
    const { items } = await get("/exports", { consumer: consumerId, dataset: members ? null : dataset, status: "completed", limit: 1 });
    if (items.length === 0) return true;
  }
  return question({
    title: `Start ${CALLED[exportType] ?? exportType} for ${consumerId}?`,
    text: [
      `It moves ${consumerId}'s position in ${dataset}: its loader must fetch this file, because the next export begins where this one ends.`,
      exportType === "full" && table?.rows ? ` It reads the whole table, about ${rows(table.rows)} (${bytes(table.bytes)}).` : "",
      format ? ` The file is ${format}${compression && compression !== "none" ? `, ${compression}` : ""}.` : "",
    ].join(""),
    yes: "Start it",
    no: "Not now",
    weight: "main",
  }).answer;
}
