// Saves an export's file to the disk. Without a key it is a plain link, which the browser streams. A link can't carry a
// key, and a URL must not: then the bytes come by `fetch`. They go straight to a file that the user picks, where the
// browser has a way for that. Where it hasn't, a file of moderate size is held in memory. For a larger one there is the
// command.

import { exportPath, fileOf, hasKey } from "./api.js";
import { el, say } from "./dom.js";
import { bytes } from "./figures.js";
import { downloading } from "./curl.js";

const MOST_IN_MEMORY = 256_000_000;

// The link or button that saves a file of an export. `complain` gets the error. `file` is one of the export's files, or
// has a `path` of its own, as the manifest does. Null: the only file.
export function downloadOf(of, label, complain, file = null) {
  const path = file === null ? "/download" : `/files/${file.part}/download`;
  const wanted = { path, name: of.outputFilename, bytes: of.bytesWritten, ...file };
  const unseen = el("span", { class: "unseen" }, ` ${wanted.name}`);
  if (!hasKey()) {
    return el("a", { class: "button", href: exportPath(of, wanted.path), download: wanted.name }, label, unseen);
  }
  const button = el("button", { type: "button", onclick: () => save() }, label, unseen);
  const save = async () => {
    complain(null);
    button.disabled = true;
    try {
      await saved(of, wanted, complain);
    } catch (error) {
      // Who closes the dialog wants nothing.
      if (error.name !== "AbortError") complain(error);
    } finally {
      button.disabled = false;
    }
  };
  return button;
}

async function saved(of, { path, name, bytes: size }, complain) {
  if (typeof window.showSaveFilePicker === "function") {
    const picked = await window.showSaveFilePicker({ suggestedName: name });
    try {
      const answer = await fileOf(of, path);
      // Its bytes are put in place when the stream has ended.
      await answer.body.pipeTo(await picked.createWritable());
    } catch (error) {
      // The picker has made the file, empty.
      await picked.remove?.();
      throw error;
    }
  } else if (size > MOST_IN_MEMORY) {
    complain(new Error(`${bytes(size)} are too much for this browser to hold; by hand: ${downloading(of)}`));
    return;
  } else {
    const answer = await fileOf(of, path);
    const url = URL.createObjectURL(await answer.blob());
    el("a", { href: url, download: name }).click();
    // The browser has taken it by then.
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  }
  say(`${name} is saved`);
}
