function (doc) {
  if (doc.trigger_id && doc.state) {
    emit([doc.trigger_id, doc.queued_at || (doc.state === "queued" ? {} : "")], [doc.state, doc.manual_execution === true, doc.started_at || null]);
  }
}
