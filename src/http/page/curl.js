// Commands that do the same as the page, quoted for a shell. A key is never written out, only the name of a variable.

import { exportPath, hasKey, jobPath } from "./api.js";
import { el, say, text } from "./dom.js";
import { COMPRESSIONS } from "./compressions.js";

export function quoted(word) {
  return `'${String(word).replaceAll("'", "'\\''")}'`;
}

function curl(parts) {
  const key = hasKey() ? ['-H "Authorization: Bearer $CDC_EXPORT_KEY"'] : [];
  return ["curl", ...key, ...parts].join(" ");
}

// The call that starts an export; `fields` are a job's, or the form's.
export function starting({ consumerId, exportType, dataset, exports, heal, format, compression, maxFileBytes }) {
  const body = {};
  if (consumerId === null) body.exportType = exportType;
  if (exports) body.datasets = exports.map((of) => of.dataset);
  else if (dataset !== "users") body.dataset = dataset;
  if (heal) body.heal = true;
  if (format !== "csv") body.format = format;
  if (compression !== COMPRESSIONS[format][0]) body.compression = compression;
  if (maxFileBytes) body.maxFileBytes = maxFileBytes;
  const parts = ["-X POST"];
  if (consumerId !== null) parts.push(`-H ${quoted(`X-Consumer-ID: ${consumerId}`)}`);
  if (Object.keys(body).length > 0) parts.push("-H 'Content-Type: application/json'", `-d ${quoted(JSON.stringify(body))}`);
  parts.push(quoted(`${location.origin}${consumerId === null ? "/exports" : `/exports/${exportType}`}`));
  return curl(parts);
}

export function following(job) {
  return curl([quoted(`${location.origin}${jobPath(job.jobId)}?wait=60`)]);
}

export function downloading(of) {
  if (of.files.length > 1) {
    return `for part in $(seq ${of.files.length}); do ${curl(["-fOJ", `"${location.origin}${exportPath(of, "/files/$part/download")}"`])}; done`;
  }
  return curl(["-fOJ", quoted(`${location.origin}${exportPath(of, "/download")}`)]);
}

export function checking(job) {
  return `printf '%s\\n' ${job.files.map((file) => quoted(`${file.sha256}  ${file.name}`)).join(" ")} | sha256sum -c`;
}

export function describing(job) {
  return curl([quoted(`${location.origin}${jobPath(job.jobId, "/manifest")}`)]);
}

export function retrying(job) {
  return curl(["-X POST", quoted(`${location.origin}${jobPath(job.jobId, "/retry")}`)]);
}

export function givingUp(job) {
  return curl(["-X DELETE", quoted(`${location.origin}${jobPath(job.jobId)}`)]);
}

// A button that copies what `command` gives.
export function copying(label, command) {
  // Only a page that came safely may write to the clipboard; elsewhere the text can be marked.
  if (!navigator.clipboard) return null;
  const word = el("span", {}, "Copy");
  const tell = (done, words) => {
    text(word, done);
    say(words);
    setTimeout(() => text(word, "Copy"), 2000);
  };
  const copy = () => navigator.clipboard.writeText(command()).then(() => tell("Copied", "copied"), () => tell("Not copied", "the browser did not let it be copied"));
  return el("button", { type: "button", onclick: copy }, word, el("span", { class: "unseen" }, ` to ${label.toLowerCase()}`));
}
