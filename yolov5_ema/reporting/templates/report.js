"use strict";
// Tables sort by a click on a heading, or by Enter on it: ascending first, then descending.
for (const table of document.querySelectorAll("table.sortable")) {
  const headings = Array.from(table.tHead.rows[0].cells);
  const body = table.tBodies[0];
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const isDescending = heading.getAttribute("aria-sort") === "ascending";
      headings.forEach((other) => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", isDescending ? "descending" : "ascending");
      const keyed = Array.from(body.rows, (row) => [keyOf(row.cells[column]), row]);
      keyed.sort(([a], [b]) => compare(a, b, isDescending ? -1 : 1));
      body.append(...keyed.map(([, row]) => row));
    });
  });
}

function keyOf(cell) {
  if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
  const text = cell.textContent.trim();
  return text === "-" ? null : text;
}

function compare(a, b, direction) {
  if (a === null || b === null) return (a === null) - (b === null); // unknown values stay at the end
  if (typeof a === "number" && typeof b === "number") return direction * (a - b);
  return direction * String(a).localeCompare(String(b), undefined, { numeric: true });
}
