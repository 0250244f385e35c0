// A click on a column's head sorts the table by it; again turns the order round.
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "descending" && head.hasAttribute("aria-sort") ? -1 : 1;
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up > 0 ? "ascending" : "descending");
    const key = row => row.cells[column].dataset.sort;
    const order = (a, b) => (a === "" ? 1 : b === "" ? -1 : isNaN(a) || isNaN(b) ? up * a.localeCompare(b) : up * (a - b));
    const rows = [...table.tBodies[0].rows].sort((a, b) => order(key(a), key(b)));
    rows.forEach(row => row.classList.remove("ruled"));
    table.tBodies[0].append(...rows);
  }));
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(detail => (detail.open = true)));
