// Rows and seconds of the last completed exports, one column each, as SVG. A single tab stop: the arrows go from export to export,
// and the table below has the same in figures.

import { el, row, show, svg, table, text } from "./dom.js";
import { bytes, count, duration, rows, utc } from "./figures.js";
import { title } from "./words.js";

const COLUMNS = [["Finished"], ["Export", "key"], ["Rows", "number"], ["Seconds", "number"], ["Size", "number"]];
const HEIGHT = 64;
const GAP = 18;
const LEFT = 78;
const WIDEST = 40;

export function chart() {
  const picture = el("div", { class: "picture" });
  const readout = el("p", { class: "readout", "aria-hidden": "true" });
  const figures = table("The same in figures", COLUMNS);
  const node = el(
    "figure",
    { class: "chart", hidden: true },
    el(
      "figcaption",
      {},
      "The last completed exports: rows, and the seconds they took",
      el("span", { class: "legend", "aria-hidden": "true" }, ["full", "incremental", "delta"].map((type) => el("span", { class: type }, type))),
    ),
    picture,
    readout,
    el("details", {}, el("summary", {}, "In figures"), figures.node),
  );
  let jobs = [];
  let chosen = -1;

  function draw() {
    const width = Math.floor(picture.clientWidth);
    if (jobs.length === 0 || width === 0) return;
    const focused = picture.contains(document.activeElement);
    const step = Math.min(WIDEST, (width - LEFT) / jobs.length);
    const most = { rows: Math.max(1, ...jobs.map((job) => job.rowsExported)), seconds: Math.max(0.001, ...jobs.map((job) => job.durationSeconds)) };
    const total = 2 * HEIGHT + GAP + 4;
    const panel = (value, most, top, kind) => {
      // What is there is seen, however little it is.
      const height = Math.max(2, (value / most) * HEIGHT);
      return (x) => svg("rect", { x, y: top + HEIGHT - height, width: Math.max(1, step - 3), height, rx: 1.5, class: kind });
    };
    const columns = jobs.map((job, i) => {
      const x = LEFT + i * step;
      const column = svg(
        "a",
        {
          href: `#/jobs/${job.jobId}`,
          tabindex: i === chosen ? 0 : -1,
          class: job.exportType,
          "aria-label": words(job),
          onfocus: () => choose(i, false),
          onmouseenter: () => text(readout, words(job)),
          onmouseleave: () => text(readout, words(jobs[chosen])),
        },
        svg("rect", { x, y: 0, width: step, height: total, class: "hit" }),
        panel(job.rowsExported, most.rows, 2, "rows")(x),
        panel(job.durationSeconds, most.seconds, 2 + HEIGHT + GAP, "seconds")(x),
      );
      return column;
    });
    const label = (y, first, second) => [
      svg("text", { x: 0, y: y + 10, class: "most" }, first),
      svg("text", { x: 0, y: y + 26 }, second),
      svg("line", { x1: LEFT, x2: width, y1: y + HEIGHT + 0.5, y2: y + HEIGHT + 0.5 }),
    ];
    picture.replaceChildren(
      svg(
        "svg",
        { width, height: total, role: "group", "aria-label": "Column chart; the arrow keys go from export to export", onkeydown: move },
        svg("g", { "aria-hidden": "true" }, label(2, compact(most.rows), "rows"), label(2 + HEIGHT + GAP, duration(most.seconds), "time")),
        columns,
      ),
    );
    if (focused) picture.querySelectorAll("a")[chosen]?.focus();
  }

  function choose(i, focus) {
    const columns = picture.querySelectorAll("a");
    columns[chosen]?.setAttribute("tabindex", "-1");
    chosen = i;
    columns[i]?.setAttribute("tabindex", "0");
    text(readout, words(jobs[i]));
    if (focus) columns[i]?.focus();
  }

  function move(event) {
    const to = { ArrowLeft: chosen - 1, ArrowRight: chosen + 1, Home: 0, End: jobs.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    choose(Math.min(jobs.length - 1, Math.max(0, to)), true);
  }

  new ResizeObserver(draw).observe(picture);

  // `newest` are completed jobs, newest first; time runs to the right.
  const update = (newest) => {
    jobs = newest.toReversed();
    chosen = jobs.length - 1;
    // One is no comparison.
    show(node, jobs.length > 1);
    figures.body.replaceChildren(
      ...newest.map((job) =>
        row(COLUMNS, [
          utc(job.finishedAt),
          el("a", { href: `#/jobs/${job.jobId}` }, title(job)),
          count(job.rowsExported),
          job.durationSeconds.toFixed(3),
          bytes(job.bytesWritten),
        ]),
      ),
    );
    text(readout, jobs.length > 0 ? words(jobs[chosen]) : "");
    draw();
  };
  return { node, update };
}

function compact(number) {
  return number < 10_000 ? count(number) : new Intl.NumberFormat("en-US", { notation: "compact", maximumSignificantDigits: 3 }).format(number);
}

function words(job) {
  return `${title(job)}: ${rows(job.rowsExported)} in ${duration(job.durationSeconds)}, ${utc(job.finishedAt).slice(0, 19)} UTC`;
}
