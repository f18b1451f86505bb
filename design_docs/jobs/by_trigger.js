function (doc) {
  if (doc.trigger_id && doc.state) emit([doc.trigger_id, doc.queued_at || ""], null);
}
