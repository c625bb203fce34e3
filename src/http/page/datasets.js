// What may be exported: each dataset's table, how its changes are found, how its copies stand, and whether an export
// could start.

import { get } from "./api.js";
import { aside, untold } from "./aside.js";
import { allLanes, byUrgency, lanesAgain, rank, stateCounts } from "./consumers.js";
import { quoted } from "./curl.js";
import { el, keyed, once, row, searching, show, table, text } from "./dom.js";
import { bytes, count } from "./figures.js";
import { DATASET_SECONDS, QUIET_SECONDS } from "./pulse.js";
import { consumerPath, datasetPath, isFaulty, standing, tracking } from "./words.js";

const COLUMNS = [["Dataset", "key"], ["Copies", "state"], ["Table", "table"], ["Changes", "changes"], ["Rows, about", "number"], ["Size", "number"], ["Columns", "number"]];
const STEP = 50;
// As many consumers with faulty copies are named.
const NAMED = 3;

// Of tables that are no datasets, several may have one name.
const keyOf = ({ name, table }) => `${name} ${table}`;

export function datasetsView() {
  const list = table("Datasets", COLUMNS);
  list.node.classList.add("lanes");
  const heading = el("h1", {}, "Datasets");
  const unknown = untold("The datasets");
  const unneeded = el("div", { class: "notice", hidden: true });
  const none = el("p", { class: "empty", hidden: true });
  let shown = STEP;
  let known = [];
  // The lanes of each dataset, the most urgent first. Null: not known yet.
  let copies = null;
  const more = el("button", { type: "button", hidden: true, onclick: () => ((shown += STEP), draw()) });
  const search = searching("datasets", "name, table or trouble", () => ((shown = STEP), draw()));
  const hint = el("p", { class: "hint" }, "The file that the setting DATASETS names says which tables these are.");
  const node = el("div", {}, heading, el("section", { "aria-label": "Datasets" }, el("div", { class: "heading" }, hint, search.node), unknown.node, unneeded, list.node, none, more));

  // Those that can't be exported come first, then those with the most urgent copies.
  function draw() {
    const withCopies = known.map((of) => ({ ...of, lanes: of.capture === null ? null : (copies && (copies.get(of.name) ?? [])) }));
    const trouble = ({ lanes }) => (lanes?.length > 0 ? rank(lanes[0]) : -1);
    const found = search.found(withCopies, (of) => [of.name, of.table, tracking(of).label, ...of.problems, ...(of.lanes ?? []).map((lane) => standing(lane).label)]);
    found.sort((one, other) => Number(one.ready) - Number(other.ready) || trouble(other) - trouble(one));
    keyed(list.body, found.slice(0, shown), keyOf, datasetRow);
    show(list.node, found.length > 0);
    show(none, known.length > 0 && found.length === 0);
    text(none, `No dataset has “${search.words()}”.`);
    show(more, found.length > shown);
    text(more, `Show more of ${count(found.length)} datasets`);
  }
  const look = aside(
    async (signal) => {
      const { items, tablesWithoutDataset } = await get("/datasets", {}, signal);
      show(unneeded, tablesWithoutDataset.length > 0);
      once(unneeded, JSON.stringify(tablesWithoutDataset), () => unneededOf(tablesWithoutDataset));
      known = items;
      show(search.node, items.length > 1);
      draw();
      return DATASET_SECONDS;
    },
    unknown.complain,
  );
  const lanes = aside(async (signal) => {
    const { items, pages } = await allLanes(signal);
    copies = Map.groupBy(byUrgency(items), ({ dataset }) => dataset);
    draw();
    return lanesAgain(items, pages);
  });
  async function beat(signal) {
    // Whether the service is there shows here too.
    await get("/exports", { limit: 1 }, signal);
    look.beat(signal);
    lanes.beat(signal);
    return QUIET_SECONDS;
  }
  return { node, heading, beat, title: "Datasets – cdc-export", name: "datasets" };
}

function datasetRow({ name, capture }) {
  const [tableName, rows, size, columns] = [1, 2, 3, 4].map(() => el("span", {}));
  const badge = el("span", { class: "badge" });
  const meaning = el("span", { class: "meaning" });
  const worst = el("span", { class: "badge" });
  const counts = el("span", { class: "meaning" });
  const cells = [
    capture === null ? name : el("a", { href: datasetPath(name), title: "its page" }, name),
    el("div", {}, worst, counts),
    tableName,
    el("div", {}, badge, meaning),
    rows,
    size,
    columns,
  ];
  // The most urgent state; whose copies are faulty, or how many of them there are.
  function drawCopies(lanes) {
    const says = lanes?.length > 0 ? standing(lanes[0]) : { label: lanes === null ? "" : "none", weight: "quiet" };
    text(worst, says.label);
    worst.className = `badge ${says.weight}`;
    const faulty = (lanes ?? []).filter(({ state }) => isFaulty(state));
    const named = () => faulty.slice(0, NAMED).flatMap(({ consumerId }, at) => [at > 0 ? ", " : "", el("a", { href: consumerPath(consumerId) }, consumerId)]);
    const rest = faulty.length > NAMED ? ` and ${count(faulty.length - NAMED)} more` : "";
    const whole = lanes?.length > 1 ? stateCounts(lanes).join(", ") : "";
    const key = [whole, rest, ...faulty.slice(0, NAMED).map(({ consumerId }) => consumerId)].join(" ");
    once(counts, key, () => [whole, whole !== "" && faulty.length > 0 ? ": " : "", ...named(), rest]);
  }
  const update = (of) => {
    text(tableName, of.table);
    const says = tracking(of);
    text(badge, says.label);
    badge.className = `badge ${says.weight}`;
    // The usual way needs no words.
    text(meaning, says.weight === "quiet" ? "" : says.meaning);
    drawCopies(of.lanes);
    text(rows, of.rows === null ? "–" : count(of.rows));
    text(size, of.capture === null || (of.rows === null && of.bytes === 0) ? "–" : bytes(of.bytes));
    text(columns, of.columns === null ? "–" : count(of.columns.length));
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
