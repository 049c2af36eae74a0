/* The questions to read: found by words and difficulty, twenty at a time. Without this script all stand on the page. */
for (const reading of document.querySelectorAll("[data-reading]")) {
  const bar = reading.querySelector("[data-search]");
  const SIZE = 20;
  const questions = [...reading.querySelectorAll("[data-question]")].map((element) => ({
    element,
    text: element.textContent.toLowerCase(),
  }));
  const input = bar.querySelector("[data-text]");
  const group = bar.querySelector("[data-group]");
  const where = bar.querySelector("[data-where]");
  const steps = [...bar.querySelectorAll("[data-step]")];
  let page = 0;

  function show() {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = questions.filter(
      ({ element, text }) =>
        (group.value === "" || element.dataset.difficulty === group.value) && words.every((word) => text.includes(word)),
    );
    const pages = Math.max(1, Math.ceil(found.length / SIZE));
    page = Math.min(Math.max(page, 0), pages - 1);
    const shown = new Set(found.slice(page * SIZE, (page + 1) * SIZE));
    for (const question of questions) question.element.hidden = !shown.has(question);
    where.textContent = found.length
      ? `${page * SIZE + 1} to ${page * SIZE + shown.size} of ${found.length}`
      : "none found";
    for (const button of steps) {
      const next = page + Number(button.dataset.step);
      button.disabled = next < 0 || next >= pages;
    }
  }

  const restart = () => {
    page = 0;
    show();
  };
  input.addEventListener("input", restart);
  group.addEventListener("change", restart);
  for (const button of steps) {
    button.addEventListener("click", () => {
      page += Number(button.dataset.step);
      show();
    });
  }
  bar.hidden = false;
  show();
}
