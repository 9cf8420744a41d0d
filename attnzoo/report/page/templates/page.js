// Highlights one variant in all plots and tables: hover, focus, or a click to keep it. The page reads without it.
(() => {
  const root = document.documentElement;
  const items = [...document.querySelectorAll("[data-v]")];
  let kept = null;
  const show = (variant) => {
    root.classList.toggle("highlighting", variant !== null);
    for (const item of items) {
      item.classList.toggle("on", item.dataset.v === variant);
      if (item.tagName === "BUTTON") item.setAttribute("aria-pressed", String(item.dataset.v === kept));
    }
  };
  const variantAt = (event) => event.target.closest?.("[data-v]")?.dataset.v ?? null;
  document.addEventListener("pointerover", (event) => {
    if (event.pointerType !== "touch") show(variantAt(event) ?? kept);
  });
  document.addEventListener("focusin", (event) => show(variantAt(event) ?? kept));
  document.addEventListener("focusout", () => show(kept));
  document.addEventListener("click", (event) => {
    const variant = variantAt(event);
    if (variant === null || event.target.closest("button") || event.target.closest("svg")) {
      kept = variant === kept ? null : variant;
      show(kept);
    }
  });
})();
