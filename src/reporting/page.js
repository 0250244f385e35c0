// A click on a column head sorts the table by that column; a second click reverses the order.
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
    const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const key = row => row.cells[column].dataset.sort;
    const compare = (a, b) => (a === "" ? 1 : b === "" ? -1 : isNaN(a) || isNaN(b) ? sign * a.localeCompare(b) : sign * (a - b));
    const rows = [...table.tBodies[0].rows].sort((a, b) => compare(key(a), key(b)));
    rows.forEach(row => row.classList.remove("ruled"));
    table.tBodies[0].append(...rows);
  }));
}
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(detail => (detail.open = true)));
