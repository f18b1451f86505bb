function (doc) {
  if (doc._conflicts && doc.worker) emit(doc._id, doc._conflicts);
}
