"""What a real deployment once met, and the test that met it before the code did: each row has at least one."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
ROWS = {
    "QDRANT_URL of another server": "test_whose_collection: "
    "an_exported_address_of_another_server_deletes_nothing_there",
    "recall measured while the server was indexing": "test_recall: a_graph_that_appears_between_two_runs, "
    "a_graph_that_appears_while_it_is_searched, a_server_that_is_always_building_is_searched_exactly",
    "another encoder's vectors under the same ids": "test_adopt_shapes: "
    "check_compares_vectors_with_what_the_encoder_gives, check_repairs_vectors_of_its_own_that_were_replaced",
    "datatype uint8, distance Manhattan": "store/test_limits: kinds_of_vectors_that_would_be_ordered_wrongly",
    "Dot, lengths that differ": "test_adopt_shapes: dot_with_lengths_that_differ",
    "Euclid, lengths that differ": "test_adopt: euclid_with_lengths_that_differ_is_refused",
    "search_allow_exact = false": "store/test_limits: recall_that_cannot_be_measured_is_not_claimed",
    "limits of searches, pages and batches": "store/test_limits: every_limit_of_a_search_is_kept_within, "
    "writes_within_batches_and_conditions, a_limit_below_what_is_needed_is_a_sentence",
    "limits set while a run goes": "store/test_limits: limits_that_are_set_while_a_run_goes",
    "rate limits": "store/test_limits: a_rate_limit_is_waited_for_and_said, a_batch_larger_than_the_bucket_is_halved",
    "a tenant that is a number": "test_adopt: a_tenant_sees_nothing_of_the_others",
    "a tenant without an index": "store/test_limits: a_missing_index_is_named_and_can_be_made",
    "max_request_size_mb": "store/test_limits: a_body_too_large_is_halved",
    "two workspaces, a copied folder": "test_whose_collection: two_that_start_together_share_nothing, "
    "a_copied_workspace_takes_nothing_from_the_original, an_ingest_without_an_image_claims_nothing",
    "a kill in the middle of a copy": "test_copy: a_copy_that_was_stopped_goes_on, a_copy_that_was_killed_goes_on",
    "the collection made anew": "test_adopt: a_collection_that_is_deleted_or_emptied_changes_nothing_here",
    "points that lack the vector": "test_adopt_shapes: points_without_the_vector_are_counted",
    "a URL without a port, a prefix": "store/test_limits: a_prefix_and_the_schemes_own_port",
    "gRPC on another port": "store/test_limits: grpc_is_found_by_asking",
    "one id under two shard keys": "test_adopt_shapes: one_id_under_two_shard_keys",
    "payloads of any shape": "test_adopt_shapes: payloads_of_any_shape, paths_into_payloads, images_in_the_payload, "
    "what_is_no_image_in_a_payload, vectors_alone",
    "a second vector": "test_adopt_shapes: a_second_vector_is_the_rerank_space, a_second_vector_alone_with_trust, "
    "reading_a_second_vector_goes_on_where_it_stopped, a_second_vector_that_is_not_the_distances_is_refused",
    "a server that is down or hangs": "store/test_limits: a_dead_or_hanging_server_is_said_within_ten_seconds",
    "a restart in the middle": "store/test_limits: in_the_middle_it_is_waited_for_and_said; "
    "store/test_server: a_restart_in_the_middle",
    "an older snapshot, new ids": "test_adopt_shapes: the_same_images_under_new_ids_keep_their_credits",
    "codes where nothing is ever built": "store/test_limits: quantization_that_can_never_happen_is_said_at_once",
    "large payloads": "store/test_limits: pages_are_bounded_by_bytes; test_adopt_shapes: requests_and_bytes_are_few",
    "one image under two ids": "test_adopt_shapes: one_image_under_two_ids, one_image_in_two_payloads_is_one",
    "keys, tokens, aliases": "store/test_limits: tokens_for_one_collection, aliases_are_followed",
    "requests side by side when one fails": "store/test_limits: the_first_failure_stops_the_rest",
}


@pytest.mark.parametrize("row", ROWS)
def test_each_row_has_its_test(row: str) -> None:
    for part in ROWS[row].split("; "):
        name, _, tests = part.partition(": ")
        tree = ast.parse((TESTS / f"{name}.py").read_text())
        there = {one.name for one in tree.body if isinstance(one, ast.FunctionDef)}
        assert {f"test_{test}" for test in tests.split(", ")} <= there
