// The exports of the last day by the hour: for each dataset or consumer a strip of bars, with failures on top of what was completed.
// The arrow keys go from hour to hour, and the table below has the same in figures.

import { Problem, get } from "./api.js";
import { aside } from "./aside.js";
import { el, keyed, row, set, show, svg, table, text } from "./dom.js";
import { count, hourOf, rows } from "./figures.js";
import { consumerPath, datasetPath } from "./words.js";

const ACTIVITY_SECONDS = 60;
const SOON_MS = 20_000;
// As many strips are shown; the others are one.
const MOST = 8;
const HOURS = 24;
const COLUMNS = [["Hour", "key"], ["Completed", "number"], ["Failed", "number"], ["Rows", "number"], ["Failed were of"]];

const BY = {
  datasets: { title: "by dataset", path: datasetPath, filter: "dataset" },
  consumers: { title: "by consumer", path: consumerPath, filter: "consumer" },
};

const total = (numbers) => numbers.reduce((sum, number) => sum + number, 0);
const some = (number, what) => (number > 0 ? [`${count(number)} ${what}`] : []);

function summed(name, items) {
  const sum = (member) => Array.from({ length: HOURS }, (_, hour) => total(items.map((of) => of[member][hour])));
  return { name, completed: sum("completed"), failed: sum("failed"), rows: sum("rows") };
}

// Bars of a unit's width, as high as the most of an hour allows. They are stretched to the room there is.
function bars({ completed, failed }) {
  const most = Math.max(1, ...completed.map((number, hour) => number + failed[hour]));
  // What is there is seen, however little it is.
  const height = (number) => (number === 0 ? 0 : Math.max(12, (number / most) * 100));
  const bar = (hour, from, size, kind) => svg("rect", { x: hour + 0.1, y: 100 - from - size, width: 0.8, height: size, class: kind });
  return completed.flatMap((number, hour) => {
    const bad = height(failed[hour]);
    const good = Math.min(height(number), 100 - bad);
    return [good > 0 && bar(hour, 0, good, "done"), bad > 0 && bar(hour, good, bad, "bad")];
  });
}

// The strip by itself, as a row of a list has it. `update` gets null where there is nothing to show.
export function sparkline() {
  const picture = svg("svg", { viewBox: `0 0 ${HOURS} 100`, preserveAspectRatio: "none", class: "strip-of-hours" });
  const node = el("span", { class: "spark" }, picture);
  const update = (of) => {
    show(node, of !== null);
    if (of === null) return;
    const words = [...some(total(of.completed), "completed"), ...some(total(of.failed), "failed")].join(", ");
    set(picture, "role", "img");
    set(picture, "aria-label", `${words} in the last 24 hours`);
    set(node, "title", `${words} in the last 24 hours`);
    redraw(picture, of);
  };
  return { node, update };
}

function redraw(picture, of) {
  const drawn = JSON.stringify([of.completed, of.failed]);
  if (picture.dataset.shows === drawn) return;
  picture.dataset.shows = drawn;
  picture.replaceChildren(...bars(of).filter(Boolean));
}

// The chart of the exports that `query` means, for a view to look at. `heard` gets each answer.
export function activity(by, query = {}, heard = () => {}) {
  const drawn = chart(by, query);
  const look = aside(async (signal) => {
    try {
      const answer = await get("/exports/activity", query, signal);
      drawn.update(answer);
      heard(answer);
    } catch (error) {
      // The address has a name that is none.
      if (!(error instanceof Problem) || error.status !== 400) throw error;
    }
    return ACTIVITY_SECONDS;
  });
  return { node: drawn.node, beat: look.beat, soon: () => look.soon(SOON_MS) };
}

function chart(by, query) {
  const { title, path, filter } = BY[by];
  const strips = el("div", { class: "strips" });
  const ticks = Array.from({ length: HOURS }, () => el("span", {}));
  const axis = el("div", { class: "axis", role: "slider", tabindex: "0", "aria-label": "Hour", "aria-valuemin": 0, "aria-valuemax": HOURS - 1 }, ticks);
  const readout = el("p", { class: "readout", "aria-hidden": "true" });
  const figures = table("The same in figures", COLUMNS);
  const heading = el("h2", { id: "activity-heading" }, "The last 24 hours");
  const legend = el("span", { class: "legend", "aria-hidden": "true" }, el("span", {}, "completed"), el("span", { class: "bad" }, "failed"));
  const node = el(
    "section",
    { class: "chart", "aria-labelledby": heading.id, hidden: true },
    el("div", { class: "heading" }, heading, el("p", { class: "hint" }, `Exports ${title} and hour, UTC`, legend)),
    el("div", { class: "plot", onpointermove: point }, strips, axis),
    readout,
    el("details", {}, el("summary", {}, "In figures"), figures.node),
  );
  let items = [];
  let since = 0;
  let chosen = HOURS - 1;

  axis.addEventListener("keydown", (event) => {
    const to = { ArrowLeft: chosen - 1, ArrowDown: chosen - 1, ArrowRight: chosen + 1, ArrowUp: chosen + 1, Home: 0, End: HOURS - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose(to);
  });

  function point({ clientX }) {
    const { left, width } = axis.getBoundingClientRect();
    if (clientX >= left && clientX < left + width) choose(Math.floor(((clientX - left) / width) * HOURS));
  }

  function choose(hour) {
    chosen = Math.min(HOURS - 1, Math.max(0, hour));
    for (const [at, tick] of ticks.entries()) tick.classList.toggle("chosen", at === chosen);
    const words = said(chosen);
    set(axis, "aria-valuenow", chosen);
    set(axis, "aria-valuetext", words);
    text(readout, words);
  }

  const from = (hour) => hourOf(since + hour * 3_600_000);
  const failing = (hour) => items.filter(({ failed }) => failed[hour] > 0).map(({ name }) => name);

  function said(hour) {
    const of = summed("", items);
    const names = failing(hour);
    const which = names.length === 0 ? "" : ` (${names.slice(0, 3).join(", ")}${names.length > 3 ? " and others" : ""})`;
    const parts = [...some(of.completed[hour], "completed"), ...some(of.failed[hour], `failed${which}`), ...(of.rows[hour] > 0 ? [rows(of.rows[hour])] : [])];
    return `${from(hour)}–${from(hour + 1)}: ${parts.join(", ") || "no export"}`;
  }

  function stripRow({ name, isRest }) {
    const picture = svg("svg", { viewBox: `0 0 ${HOURS} 100`, preserveAspectRatio: "none", class: "strip-of-hours", "aria-hidden": "true" });
    const number = el("span", {});
    const bad = isRest ? el("span", { class: "status bad" }) : el("a", { class: "status bad", href: `#/exports?${new URLSearchParams({ ...query, [filter]: name, status: "failed" })}` });
    const label = el(isRest ? "span" : "a", { class: "of", href: isRest ? null : path(name) }, name);
    const update = (of) => {
      if (of.isRest) text(label, of.name);
      redraw(picture, of);
      const failed = total(of.failed);
      text(number, `${count(total(of.completed))} completed`);
      show(bad, failed > 0);
      text(bad, `${count(failed)} failed`);
    };
    return { node: el("div", { class: "strip-row" }, label, picture, el("span", { class: "sums" }, number, bad)), update };
  }

  const update = (answer) => {
    items = answer[by];
    since = Date.parse(answer.since);
    show(node, items.length > 0);
    if (items.length === 0) return;
    const shown = items.length > MOST ? items.slice(0, MOST - 1) : items;
    const rest = items.slice(shown.length);
    const strip = [...shown, ...(rest.length > 0 ? [{ ...summed(`${count(rest.length)} others`, rest), isRest: true }] : [])];
    keyed(strips, strip, ({ name, isRest }) => (isRest ? " rest" : name), stripRow);
    // At its end a word would leave the picture.
    for (const [hour, tick] of ticks.entries()) {
      const isTick = new Date(since + hour * 3_600_000).getUTCHours() % 3 === 0;
      tick.classList.toggle("tick", isTick);
      text(tick, isTick && hour < HOURS - 2 ? from(hour) : "");
    }
    choose(chosen);
    const all = summed("", items);
    const hours = Array.from({ length: HOURS }, (_, hour) => HOURS - 1 - hour).filter((hour) => all.completed[hour] + all.failed[hour] > 0);
    figures.body.replaceChildren(
      ...hours.map((hour) => row(COLUMNS, [from(hour), count(all.completed[hour]), count(all.failed[hour]), count(all.rows[hour]), failing(hour).join(", ") || "–"])),
    );
  };
  return { node, update };
}
