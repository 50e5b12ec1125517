"""Kafka: the producer sink, topics and reading them, the embedded broker. The only room that imports aiokafka and
confluent_kafka; importing this package alone imports neither.
"""
