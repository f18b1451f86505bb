function (doc) {
  if (doc.worker && doc.state) emit(doc.queued_at || "", null);
}
