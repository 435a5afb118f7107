// What needs scripts is shown now that there are some.

startTable();
startColumns();
byId("charts").hidden = false;
startScatter();
startSearches();
startLines();
startHeat();
startPictures();
if (!sets.length) document.querySelector("nav a[href='#pictures']").parentElement.classList.add("absent");
if (byId("charts").querySelector("figure") === null) {
  byId("charts").hidden = true;
  document.querySelector("nav a[href='#charts']").parentElement.classList.add("absent");
}
for (const element of document.querySelectorAll(".scripted:not(section):not(#more)")) element.hidden = element.classList.contains("absent");
filterRows();
document.documentElement.dataset.ready = "true";
