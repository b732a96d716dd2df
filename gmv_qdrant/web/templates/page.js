// The only script: a dropped or pasted image goes into the form's own file field, which is then sent.
const form = document.querySelector("form.drop");
if (form) {
  const field = form.querySelector("input[type=file]");
  const send = (files) => {
    if (!files || !files.length) return;
    const one = new DataTransfer();
    one.items.add(files[0]);
    field.files = one.files;
    form.requestSubmit();
  };
  form.addEventListener("submit", () => { form.querySelector(".status").hidden = false; });
  for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
    window.addEventListener(kind, (event) => {
      event.preventDefault();
      form.classList.toggle("over", kind === "dragenter" || kind === "dragover");
      if (kind === "drop") send(event.dataTransfer.files);
    });
  }
  window.addEventListener("paste", (event) => send(event.clipboardData.files));
}
