// reduce: _count
function (doc) {
  if (!doc.worker || !doc.state || doc.worker.length > 200 || doc.state.length > 20 || doc._id.length > 20000) return;
  var at = doc.queued_at || (doc.state === "queued" ? {} : "");
  emit([doc.worker, doc.state, typeof at === "string" && at.length > 64 ? "" : at], null);
}
