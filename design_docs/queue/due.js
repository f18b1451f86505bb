// reduce: _count
function (doc) {
  if (doc.state !== "queued") return;
  var worker = typeof doc.worker === "string" ? doc.worker : null;
  var high = doc.priority === undefined ? (doc.manual_execution ? 1 : 0) : doc.priority;
  emit([worker, "due", doc.scheduled_at || doc.queued_at || ""], null);
  if (high > 0) emit([worker, "first", -high, doc.scheduled_at || doc.queued_at || ""], null);
}
