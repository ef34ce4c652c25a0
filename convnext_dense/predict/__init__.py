"""Predictions: a trained model, images of any number and size, and what is found on them as arrays and files."""

from convnext_dense.predict.model import Model, load_model
from convnext_dense.predict.run import predict
from convnext_dense.results import LabelMap, Objects
