// The exports of a job of several datasets. They are read at one moment, and complete together or not at all.

import { complaints } from "./actions.js";
import { downloadOf } from "./download.js";
import { el, keyed, once, row, set, show, table, text } from "./dom.js";
import { bytes, count } from "./figures.js";
import { datasetPath, failedDataset } from "./words.js";

const COLUMNS = [["Dataset", "key"], ["Type"], ["Rows", "number"], ["Size", "number"], ["Number", "ordinal"], ["Files", "does"]];
const STEP = 50;
// At most so many files of an export have a button.
const LISTED = 10;

export function jobExports() {
  const list = table("Its exports", COLUMNS);
  const more = el("button", { type: "button", hidden: true, onclick: () => ((limit += STEP), update(known)) });
  const heading = el("h2", { id: "exports-heading" }, "Its exports");
  const node = el("section", { "aria-labelledby": heading.id, hidden: true }, heading, list.node, more);
  let limit = STEP;
  let known = null;

  // The export that the job failed by comes first.
  function update(job) {
    known = job;
    const failed = job.error && failedDataset(job);
    const sorted = job.exports.toSorted((one, other) => Number(other.dataset === failed) - Number(one.dataset === failed));
    const items = sorted.slice(0, limit).map((of) => ({ ...of, jobId: job.jobId, isOneOf: true, code: of.dataset === failed ? job.error.code : "" }));
    keyed(list.body, items, ({ dataset }) => dataset, exportRow);
    show(node, true);
    show(more, sorted.length > limit);
    text(more, `Show more of ${count(sorted.length)} exports`);
  }
  return { node, update };
}

function exportRow({ dataset }) {
  const [code, type, written, size, number, digest] = Array.from({ length: 6 }, () => el("span", {}));
  code.className = "meaning code";
  digest.className = "meaning code";
  const { node: complaint, complain } = complaints();
  const files = el("div", { class: "buttons" });
  const cells = [
    el("div", {}, el("a", { href: datasetPath(dataset) }, dataset), code),
    type,
    written,
    size,
    el("div", {}, number, digest),
    el("div", { class: "actions" }, files, complaint),
  ];
  const update = (of) => {
    text(code, of.code);
    text(type, of.exportType);
    text(written, count(of.rowsExported));
    text(size, bytes(of.bytesWritten));
    text(number, count(of.number));
    text(digest, of.digest?.slice(0, 8) ?? "");
    set(digest, "title", of.digest && `The digest of its manifest: ${of.digest}`);
    once(files, `${of.phase} ${of.skipped} ${of.files.length}`, () => filesOf(of, complain));
  };
  return { node: row(COLUMNS, cells), update };
}

// The files of an export and its manifest, or why it has none.
function filesOf(of, complain) {
  if (of.files.length === 0) return el("span", { class: "quiet" }, of.phase ?? (of.skipped ? "skipped: it found nothing" : "none"));
  const listed = of.files.slice(0, LISTED).map((file) => downloadOf(of, of.files.length === 1 ? "Download" : `File ${file.part}`, complain, file));
  const others = of.files.length - listed.length;
  if (others > 0) listed.push(el("span", { class: "quiet" }, `and ${count(others)} more`));
  const name = `${of.outputFilename.replace(/\.(csv|ndjson|parquet)(\.\w+)?$/, "")}.manifest.json`;
  return [...listed, downloadOf(of, "Manifest", complain, { path: "/manifest", name, bytes: 0 })];
}
