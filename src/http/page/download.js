// A job's file to the disk. Without a key it is a plain link, which the browser streams. A link can't carry a key, and a URL must
// not: then the bytes come by `fetch`, and go straight to a file that the user picks, where the browser has a way for that. Where it
// hasn't, a file of moderate size is held in memory; for a larger one there is the command.

import { fileOf, filePath, hasKey } from "./api.js";
import { el, say } from "./dom.js";
import { bytes } from "./figures.js";
import { downloading } from "./curl.js";

const MOST_IN_MEMORY = 256_000_000;

// The control for it, and what is to be said when it fails by `complain`. Of several files `file` is one of the job's.
export function downloadOf(job, label, complain, file = null) {
  const wanted = file ?? { part: null, name: job.outputFilename, bytes: job.bytesWritten };
  const unseen = el("span", { class: "unseen" }, ` ${wanted.name}`);
  if (!hasKey()) {
    return el("a", { class: "button", href: filePath(job, wanted.part), download: wanted.name }, label, unseen);
  }
  const button = el("button", { type: "button", onclick: () => save() }, label, unseen);
  const save = async () => {
    complain(null);
    button.disabled = true;
    try {
      await saved(job, wanted, complain);
    } catch (error) {
      // Who closes the dialog wants nothing.
      if (error.name !== "AbortError") complain(error);
    } finally {
      button.disabled = false;
    }
  };
  return button;
}

async function saved(job, { part, name, bytes: size }, complain) {
  if (typeof window.showSaveFilePicker === "function") {
    const picked = await window.showSaveFilePicker({ suggestedName: name });
    try {
      const answer = await fileOf(job, part);
      // Its bytes are put in place when the stream has ended.
      await answer.body.pipeTo(await picked.createWritable());
    } catch (error) {
      // The picker has made the file, empty.
      await picked.remove?.();
      throw error;
    }
  } else if (size > MOST_IN_MEMORY) {
    complain(new Error(`${bytes(size)} are too much for this browser to hold; by hand: ${downloading(job)}`));
    return;
  } else {
    const answer = await fileOf(job, part);
    const url = URL.createObjectURL(await answer.blob());
    el("a", { href: url, download: name }).click();
    // The browser has taken it by then.
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  }
  say(`${name} is saved`);
}
