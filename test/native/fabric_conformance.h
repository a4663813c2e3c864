// What every fabric must do, as one suite of cases over a bed: a few connected members of one
// fabric. A test program for a fabric makes a FabricBed of it and calls
// AddConformanceCases<ItsBed>() before Main.
#pragma once

#include "fabric_bed.h"
#include "fabric_data_cases.h"
#include "fabric_exposed_cases.h"
#include "fabric_life_cases.h"
#include "fabric_wake_cases.h"

namespace falcon::test {

template <typename Bed, void (*Run)(FabricBed&)>
void AddConformanceCase(const char* name) {
  Cases().push_back({name, [] {
                       Bed bed;
                       Run(bed);
                     }});
}

template <typename Bed>
void AddConformanceCases() {
  namespace c = conformance;
  AddConformanceCase<Bed, c::WritesAndReadsReachTheRightRegion>(
      "writes_and_reads_reach_the_right_region");
  AddConformanceCase<Bed, c::PiecesAreJoined>("pieces_are_joined");
  AddConformanceCase<Bed, c::BigWritesArriveWhole>("big_writes_arrive_whole");
  AddConformanceCase<Bed, c::NothingIsWrittenBeyondARegion>("nothing_is_written_beyond_a_region");
  AddConformanceCase<Bed, c::WritesOfOneConnectionKeepTheirOrder>(
      "writes_of_one_connection_keep_their_order");
  AddConformanceCase<Bed, c::AlignedWordsNeverTear>("aligned_words_never_tear");
  AddConformanceCase<Bed, c::PeersDoNotDisturbEachOther>("peers_do_not_disturb_each_other");
  AddConformanceCase<Bed, c::OperationsAreCounted>("operations_are_counted");
  AddConformanceCase<Bed, c::AFullQueueSaysSo>("a_full_queue_says_so");
  AddConformanceCase<Bed, c::AWriterMayDieInTheMiddle>("a_writer_may_die_in_the_middle");
  AddConformanceCase<Bed, c::LateWritesDoNotReachANewIncarnation>(
      "late_writes_do_not_reach_a_new_incarnation");
  AddConformanceCase<Bed, c::NoWakeIsLost>("no_wake_is_lost");
  AddConformanceCase<Bed, c::NobodyIsRungWhoDoesNotSleep>("nobody_is_rung_who_does_not_sleep");
  AddConformanceCase<Bed, c::MembersCloseInEveryState>("members_close_in_every_state");
  AddConformanceCase<Bed, c::NothingLeaksOverManyConnections>(
      "nothing_leaks_over_many_connections");
  AddConformanceCase<Bed, c::ConnectionsMayBePreparedByOtherThreads>(
      "connections_may_be_prepared_by_other_threads");
  AddConformanceCase<Bed, c::BadDescriptorsAreRefused>("bad_descriptors_are_refused");
  AddConformanceCase<Bed, c::RegionsAreMadeOnceAndEarly>("regions_are_made_once_and_early");
  AddConformanceCase<Bed, c::ExposedMemoryIsWrittenAndRead>("exposed_memory_is_written_and_read");
  AddConformanceCase<Bed, c::ExposedMemoryHasBounds>("exposed_memory_has_bounds");
  AddConformanceCase<Bed, c::ExposuresAreChecked>("exposures_are_checked");
  AddConformanceCase<Bed, c::AGrantIsForOnePeerAndConnection>(
      "a_grant_is_for_one_peer_and_connection");
  AddConformanceCase<Bed, c::BadGrantsAreRefused>("bad_grants_are_refused");
  AddConformanceCase<Bed, c::ConcealedMemoryIsLeftAlone>("concealed_memory_is_left_alone");
  AddConformanceCase<Bed, c::WhatIsOnItsWayToConcealedMemoryIsDropped>(
      "what_is_on_its_way_to_concealed_memory_is_dropped");
  AddConformanceCase<Bed, c::AnEarlierGrantOpensNothing>("an_earlier_grant_opens_nothing");
  AddConformanceCase<Bed, c::TheEndOfAConnectionConceals>("the_end_of_a_connection_conceals");
  AddConformanceCase<Bed, c::ExposedMemoryKeepsTheOrder>("exposed_memory_keeps_the_order");
  AddConformanceCase<Bed, c::AMoverMovesPages>("a_mover_moves_pages");
  AddConformanceCase<Bed, c::MemoryIsLockedAndLetGoByOtherThreads>(
      "memory_is_locked_and_let_go_by_other_threads");
  AddConformanceCase<Bed, c::ManySessionsLeakNothing>("many_sessions_leak_nothing");
}

}  // namespace falcon::test
