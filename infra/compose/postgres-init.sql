CREATE DATABASE mlflow OWNER nightjar;
