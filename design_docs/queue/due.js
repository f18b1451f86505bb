// reduce: _count
function (doc) {
  if (doc.state !== "queued" || doc._id.length > 20000) return;
  var worker = typeof doc.worker === "string" && doc.worker.length <= 200 ? doc.worker : null;
  var high = doc.priority === undefined ? (doc.manual_execution ? 1 : 0) : doc.priority;
  var due = doc.scheduled_at || doc.queued_at || "";
  if (typeof due !== "string" || due.length > 64) due = ""; // no job: whoever reads it says so
  if (due.charAt(due.length - 1) !== "Z") {
    var time = new Date(due); // another zone: text order must be time order
    if (!isNaN(time.getTime())) due = time.toISOString();
  }
  var conflict = doc._conflicts ? 1 : null; // the other branches are to be looked at first
  emit([worker, "due", due], conflict);
  if (high > 0) emit([worker, "first", -high, due], conflict);
}
