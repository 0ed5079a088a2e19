element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-mark]");
  if (!button) return;
  const row = Number(button.closest("[data-number]").dataset.number);
  const part = button.closest("[data-slot]");
  const again = button.getAttribute("aria-pressed") === "true";
  const mark = again ? "none" : button.dataset.mark;
  const area = part.querySelector("textarea");
  const edited = mark === "edit" ? area.value.trim() : "";
  if (mark === "edit" && !edited) { area.focus(); return; }
  part.querySelectorAll("[aria-pressed]").forEach((one) => one.setAttribute("aria-pressed", "false"));
  if (mark === "good" || mark === "bad") button.setAttribute("aria-pressed", "true");
  const shown = part.querySelector(".mp-edited");
  if (shown) shown.textContent = edited;
  if (mark === "edit") button.closest("details").open = false;
  trigger("edit", { row: row, slot: Number(part.dataset.slot), mark: mark, edited: edited });
});
