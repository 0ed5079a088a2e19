element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-row]");
  if (!button) return;
  const row = Number(button.dataset.row);
  if (button.dataset.vote) {
    button.closest(".mp-votes").querySelectorAll("[data-vote]").forEach((one) => one.removeAttribute("aria-pressed"));
    button.setAttribute("aria-pressed", "true");
    trigger("edit", { row: row, vote: Number(button.dataset.vote) });
  } else {
    trigger("select", { row: row });
  }
});
