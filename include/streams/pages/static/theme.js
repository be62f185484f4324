// Before the first paint: the colours that the user has chosen in Airflow, which keeps the choice in this origin's
// storage. Without one, those of the system.
"use strict";
{
  const apply = () => {
    let chosen = null;
    try {
      chosen = localStorage.getItem("theme");
    } catch {
      // Storage can be forbidden; then it is the system's.
    }
    if (chosen !== "light" && chosen !== "dark") {
      chosen = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    }
    document.documentElement.dataset.theme = chosen;
  };
  apply();
  addEventListener("storage", apply);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", apply);
}
