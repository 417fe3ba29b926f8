"""The attacks of `benchmarks.reliability`: what an attacker can do to a server, case by case, with bounds on each case.

A server of `pocketrank serve` is started for each case, on a core of its own. Honest devices ask it for pages at a quiet rate
in an open loop, and a prober asks `/livez` every 50 ms, before, during and after the attack. Everything happens on the loopback
interface. Attackers have addresses of their own there, so that a limit by address meets them and not the honest devices.

The report is `attack`::

    cases_held                  of `cases_run`: whether every aim of the case was met (`measure.Aims`)
    memory_growth_mb, memory_peak_mb, page_p99_ms, p99_ratio, livez_max_ms, back_s
                                the worst of all cases; null: there was no end to it in some case
    server_errors               answers 5xx, broken and dropped answers to honest devices, of all cases
    spoofed_accepted            events of another user that were accepted, or whose ids were taken from that user
    vectors_leaked              vectors of another user that were sent
    unsigned_accepted           bundles that were published and that no trusted key had signed
    events_lost                 acknowledged events that no log has
    cases                       by name (`cases.CASES`)
      .does, .holds             the attack, and what the attacker has
      .held, .missed            whether it met its aims, and the figures that did not
      .memory_growth_mb, .memory_peak_mb
                                proportional set size of all processes of the server, from before the attack to the end and to
                                its highest sample
      .page_p50_ms, .page_p99_ms, .quiet_p50_ms, .quiet_p99_ms, .p99_ratio
                                of honest devices, while it lasts and before it; a request without a page counts as one that
                                takes for ever, and null stands for that
      .server_errors, .pages_without, .quiet_without
                                honest requests without a page: as above, and by outcome, and before the attack
      .degraded                 share of their pages that each reason degraded
      .livez_max_ms, .livez_failed, .livez_quiet_max_ms
      .back_s                   from the end of the attack to pages that are whole and in time; null: not within the calm
      .attack_s                 how long it lasted
      .refused                  answers to the attacker by status, from 400
      .others_busy              share of the server's core that other processes had; times say little above a few percent
      .log_lines                that the server logged meanwhile
      .exit_code                of the server at SIGTERM; null: it had to be killed
      .bytes, .connections, .events_made, .events_accepted, …
                                what was done of the attack
"""
