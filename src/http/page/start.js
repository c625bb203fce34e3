// The form for a new export, with the command that does the same.

import { get, submission } from "./api.js";
import { complaints } from "./actions.js";
import { COMPRESSIONS } from "./compressions.js";
import { copying, starting } from "./curl.js";
import { dialog, el, say, set, show, text } from "./dom.js";
import { wake } from "./pulse.js";
import { mayMove } from "./question.js";
import { CONSUMER_ID, TYPES, isConsumerId, isDataset, needsFull } from "./words.js";

// `lane`: whose export it is at first, and in which dataset; of the same kind as its last one.
export function askForExport(onStarted, lane = null) {
  const last = lane?.lastJob ?? {};
  const consumer = el("input", {
    id: "start-consumer",
    name: "consumer",
    autocomplete: "off",
    autocapitalize: "none",
    spellcheck: "false",
    maxlength: 128,
    "aria-describedby": "start-consumer-hint",
  });
  const dataset = el("select", { id: "start-dataset", name: "dataset" }, [lane?.dataset ?? "users"].map((name) => el("option", { value: name }, name)));
  const format = choice("format", Object.keys(COMPRESSIONS));
  const compression = choice("compression", []);
  const types = Object.entries(TYPES).map(([type, meaning]) => {
    const input = el("input", { type: "radio", name: "exportType", value: type, id: `start-${type}` });
    input.checked = type === (lane !== null && needsFull(lane) ? "full" : (last.exportType ?? "full"));
    return { input, node: el("label", { for: input.id, class: "radio" }, input, el("span", {}, el("b", {}, type), ` ${meaning}`)) };
  });
  const unready = el("p", { class: "notice", hidden: true });
  const command = el("code", {});
  const { node: complaint, complain } = complaints();
  const start = el("button", { type: "submit", class: "main" }, "Start");

  // The compressions of the format. One that it doesn't have becomes its default.
  function offer(chosen) {
    const offered = COMPRESSIONS[format.value];
    compression.replaceChildren(...options(offered));
    compression.value = offered.includes(chosen) ? chosen : offered[0];
  }
  format.addEventListener("input", () => offer(null));

  // As the form stands.
  const fields = () => ({
    consumerId: consumer.value.trim() === "" ? null : consumer.value.trim(),
    exportType: types.find(({ input }) => input.checked).input.value,
    dataset: dataset.value,
    format: format.value,
    compression: compression.value,
    ...(last.maxFileBytes ? { maxFileBytes: last.maxFileBytes } : {}),
  });
  const form = el(
    "form",
    { novalidate: true, onsubmit: (event) => (event.preventDefault(), submit()), oninput: () => edited() },
    el("label", { for: consumer.id }, "Consumer"),
    consumer,
    el("p", { class: "hint", id: "start-consumer-hint" }, "Who it is for; a new name makes a new consumer. Empty: an ad-hoc full export, which moves no watermark."),
    el("fieldset", {}, el("legend", {}, "Rows"), types.map(({ node }) => node)),
    el(
      "div",
      { class: "columns" },
      el("label", { for: dataset.id }, "Dataset", dataset),
      el("label", { for: format.id }, "Format", format),
      el("label", { for: compression.id }, "Compression", compression),
    ),
    unready,
    el("div", { class: "command" }, el("pre", { tabindex: "0", "aria-label": "the same by hand" }, command), copying("ask by hand", () => command.textContent)),
    complaint,
    el("p", { class: "buttons" }, start, el("button", { type: "button", onclick: () => opened.close() }, "Close")),
  );

  // The same form sent twice, by a click whose answer was lost, is one request.
  let pending = null;
  let datasets = [];
  function edited() {
    pending = null;
    set(consumer, "aria-invalid", null);
    complain(null);
    changed();
  }

  function changed() {
    const { consumerId, dataset: name } = fields();
    const known = datasets.find((one) => one.name === name);
    const isFull = consumerId === null || known?.capture === "none";
    for (const { input } of types) input.disabled = isFull && input.value !== "full";
    if (isFull) types[0].input.checked = true;
    text(command, starting(fields()));
    const problems = known?.problems ?? [];
    text(unready, problems.length > 0 ? `It can't be exported now: ${problems.join("; ")}` : "");
    show(unready, problems.length > 0);
  }

  async function submit() {
    const { consumerId, exportType, ...options } = fields();
    if (consumerId !== null && !isConsumerId(consumerId)) {
      set(consumer, "aria-invalid", true);
      consumer.focus();
      return complain(new Error(CONSUMER_ID));
    }
    start.disabled = true;
    try {
      const table = datasets.find((one) => one.name === options.dataset);
      if (pending === null && !(await mayMove({ consumerId, exportType, ...options, table }))) return;
    } catch (error) {
      return complain(error);
    } finally {
      start.disabled = false;
      // A button that is disabled loses it.
      start.focus();
    }
    pending ??= consumerId === null ? submission("/exports", { body: { exportType, ...options } })
      : submission(`/exports/${exportType}`, { headers: { "X-Consumer-ID": consumerId }, body: options });
    start.disabled = true;
    try {
      const job = await pending();
      opened.close();
      say(`started: ${exportType} export of ${options.dataset}`);
      onStarted(job.jobId);
      wake();
    } catch (error) {
      // What was refused is another request when it is mended.
      if (error.status < 500) pending = null;
      complain(error);
    } finally {
      start.disabled = false;
    }
  }

  const opened = dialog("New export", form);
  opened.classList.add("wide");
  if (lane !== null) {
    consumer.value = lane.consumerId;
    if (last.format) format.value = last.format;
  }
  offer(last.compression);
  changed();
  (lane === null ? consumer : start).focus();
  // The form is of use before it knows them all.
  get("/datasets").then((list) => {
    datasets = list.items.filter(isDataset);
    const chosen = dataset.value;
    dataset.replaceChildren(...datasets.map(({ name, ready }) => el("option", { value: name }, ready ? name : `${name} (not ready)`)));
    if (datasets.some(({ name }) => name === chosen)) dataset.value = chosen;
    changed();
  }, complain);
}

function choice(name, values) {
  return el("select", { id: `start-${name}`, name }, options(values));
}

function options(values) {
  return values.map((value) => el("option", { value }, value));
}
