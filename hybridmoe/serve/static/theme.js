// Sets the theme before the first paint: the system's, unless another was chosen.
const theme = localStorage.getItem("hybridmoe.theme");
if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
