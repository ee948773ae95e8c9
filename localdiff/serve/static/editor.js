// The editor of texts with holes: an editable element in which a hole is a small box with its number of tokens; empty,
// the model chooses. parts() is what /v1/infill takes.

export class HoleEditor {
  constructor(element) {
    this.element = element;
    element.addEventListener("paste", (event) => {
      event.preventDefault();
      insert(document.createTextNode(event.clipboardData.getData("text/plain")), element);
    });
    element.addEventListener("keydown", (event) => {
      if (event.target !== element) return;
      if (event.ctrlKey && event.code === "Space") { event.preventDefault(); this.addHole(); }
      else if (event.key === "Enter" && !event.ctrlKey) {
        event.preventDefault();
        insert(document.createTextNode("\n"), element);
      }
    });
  }

  // Put a hole where the caret is, in place of what is selected.
  addHole(tokens = 4) {
    const hole = holeBox(tokens);
    insert(hole, this.element);
    hole.querySelector("input").select();
  }

  // parts: texts and {hole: number or null}
  set(parts) {
    this.element.replaceChildren(...parts.map((part) => (typeof part === "string" ? part : holeBox(part.hole))));
  }

  parts() {
    const found = [];
    const push = (text) => {
      if (typeof found.at(-1) === "string") found[found.length - 1] += text;
      else if (text) found.push(text);
    };
    const walk = (node) => {
      for (const child of node.childNodes) {
        if (child.nodeType === Node.TEXT_NODE) push(child.data.replaceAll("\u00a0", " "));
        else if (child.classList?.contains("hole")) {
          const length = child.querySelector("input").value;
          found.push({ hole: length ? Number(length) : null });
        } else if (child.nodeName === "BR") { if (child.nextSibling) push("\n"); }
        else { if (child.nodeName === "DIV" && found.length) push("\n"); walk(child); }
      }
    };
    walk(this.element);
    return found;
  }
}

function holeBox(tokens) {
  const box = document.createElement("span");
  box.className = "hole";
  box.contentEditable = "false";
  const length = document.createElement("input");
  Object.assign(length, { type: "number", min: 1, max: 999, value: tokens ?? "", placeholder: "auto" });
  length.setAttribute("aria-label", "tokens of the hole, empty: the model chooses");
  box.append(length);
  return box;
}

function insert(node, element) {
  const selection = getSelection();
  let range = selection.rangeCount ? selection.getRangeAt(0) : null;
  if (!range || !element.contains(range.commonAncestorContainer)) {
    range = document.createRange();
    range.selectNodeContents(element);
    range.collapse(false);
  }
  range.deleteContents();
  range.insertNode(node);
  range.setStartAfter(node);
  range.collapse(true);
  selection.removeAllRanges();
  selection.addRange(range);
}
