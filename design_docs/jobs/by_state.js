// reduce: _count
function (doc) {
  if (doc.worker && doc.state) emit([doc.worker, doc.state, doc.queued_at || (doc.state === "queued" ? {} : "")], null);
}
