"""A report on a trained model: figures by class, kinds of errors and the worst images, as a page and as JSON."""

from convnext_dense.report.hook import ReportHook, report
