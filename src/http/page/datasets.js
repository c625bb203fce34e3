// What may be exported: each dataset's table, how its changes are found, whether an export could start, and its columns.

import { get } from "./api.js";
import { aside } from "./aside.js";
import { quoted } from "./curl.js";
import { el, keyed, once, row, show, table, text } from "./dom.js";
import { bytes, count } from "./figures.js";
import { DATASET_SECONDS, QUIET_SECONDS } from "./pulse.js";
import { tracking } from "./words.js";

const COLUMNS = [["Dataset", "key"], ["Table"], ["Tracking"], ["Rows, about", "number"], ["Size", "number"], ["Columns"]];

// Of tables that are no datasets, several may have one name.
const keyOf = ({ name, table }) => `${name} ${table}`;

export function datasetsView() {
  const list = table("Datasets", COLUMNS);
  const heading = el("h1", {}, "Datasets");
  const unknown = el("p", { class: "notice", hidden: true });
  const unneeded = el("div", { class: "notice", hidden: true });
  show(list.node, false);
  const node = el(
    "div",
    {},
    heading,
    el("section", { "aria-label": "Datasets" }, el("p", { class: "hint" }, "The file that the setting DATASETS names says which tables these are."), unknown, unneeded, list.node),
  );
  const look = aside(
    async (signal) => {
      const { items, tablesWithoutDataset } = await get("/datasets", {}, signal);
      show(unneeded, tablesWithoutDataset.length > 0);
      once(unneeded, JSON.stringify(tablesWithoutDataset), () => unneededOf(tablesWithoutDataset));
      keyed(list.body, items, keyOf, datasetRow);
      show(list.node, items.length > 0);
      return DATASET_SECONDS;
    },
    (error) => {
      show(unknown, error !== null);
      text(unknown, error === null ? "" : `The datasets can't be told now: ${error.message}`);
    },
  );
  async function beat(signal) {
    // Whether the service is there shows here too.
    await get("/exports", { limit: 1 }, signal);
    look.beat(signal);
    return QUIET_SECONDS;
  }
  return { node, heading, beat, title: "Datasets – cdc-export", name: "datasets" };
}

function datasetRow({ name, capture }) {
  const [tableName, rows, size] = [1, 2, 3].map(() => el("span", {}));
  const badge = el("span", { class: "badge" });
  const meaning = el("span", { class: "meaning" });
  const columns = el("div", {});
  const cells = [
    capture === null ? name : el("a", { href: `#/exports?dataset=${encodeURIComponent(name)}`, title: "its exports" }, name),
    tableName,
    el("div", {}, badge, meaning),
    rows,
    size,
    columns,
  ];
  const update = (of) => {
    text(tableName, of.table);
    const says = tracking(of);
    text(badge, says.label);
    badge.className = `badge ${says.weight}`;
    text(meaning, says.meaning);
    text(rows, of.rows === null ? "not known" : count(of.rows));
    text(size, of.capture === null ? "not known" : bytes(of.bytes));
    once(columns, JSON.stringify([of.columns, of.key, of.updatedAt, of.createdAt, of.deleted]), () => columnsOf(of));
  };
  return { node: row(COLUMNS, cells), update };
}

// Names the tables that still have triggers: these slow down each write, and nobody reads what they log.
function unneededOf(tables) {
  // A table's owner chooses its name, and a person may paste this into a shell.
  const word = (name) => (/^[\w.]+$/.test(name) ? name : quoted(name));
  const line = (name) => el("li", {}, el("code", {}, `cdc-export untrack --table ${word(name)}`));
  return el("div", {}, "The changes of these tables are captured, and no dataset needs them:", el("ul", { class: "listed" }, tables.map(line)));
}

function columnsOf(of) {
  if (of.capture === null) return el("span", { class: "quiet" }, "not exported");
  if (of.columns === null) return el("span", { class: "quiet" }, "The table doesn't fit the catalog.");
  const roles = (column) => [
    of.key?.includes(column) && "key",
    of.updatedAt === column && "when it was changed",
    of.createdAt === column && "when it was made",
    of.deleted === column && "whether it is deleted",
  ].filter(Boolean).join(", ");
  const line = ({ name, type }) => el("li", {}, el("code", {}, name), ` ${type}`, roles(name) && el("span", { class: "quiet" }, ` – ${roles(name)}`));
  const number = of.columns.length;
  return el(
    "details",
    {},
    el("summary", {}, `${count(number)} ${number === 1 ? "column" : "columns"}`, el("span", { class: "unseen" }, ` of ${of.name}`)),
    el("ul", { class: "listed" }, of.columns.map(line)),
  );
}
