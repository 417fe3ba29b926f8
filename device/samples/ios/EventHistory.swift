// SAMPLE, never compiled and never run: there was no Swift compiler. See README.md.
import Foundation

/// The last `events_max` impressions, oldest first.
struct EventHistory {
    let spec: FeatureSpec
    private var events: [Event] = []

    static let gapSecondsMax: Int64 = 604_800 // a week
    static let gapPositionsMax: Int64 = 10_000
    static let farMs: Int64 = 1 << 53
    static let farPosition: Int64 = 1 << 40

    init(spec: FeatureSpec) { self.spec = spec }

    private struct Event {
        let impressionMs: Int64
        let position: Int64
        let floats: [Float]
        let categories: [Int32]
        let vector: [Float]?
        let feedback: [Float]
    }

    var count: Int { events.count }

    /// Remember that `row` of `page` was shown. A late event is inserted before those of later impressions. False for
    /// one that is older than all of a full history, which is dropped.
    mutating func append(impressionMs: Int64, position: Int64, feedback: [Float], page: PageFeatures, row: Int) -> Bool {
        let shownMs = min(max(impressionMs, -Self.farMs), Self.farMs)
        let at = (events.lastIndex { $0.impressionMs <= shownMs } ?? -1) + 1
        if at == 0 && events.count == spec.eventsMax { return false }
        let event = Event(
            impressionMs: shownMs,
            position: min(max(position, -Self.farPosition), Self.farPosition),
            floats: page.floats[row],
            categories: page.categories[row],
            vector: page.vectors?[row],
            feedback: feedback
        )
        events.insert(event, at: at)
        if events.count > spec.eventsMax { events.removeFirst() }
        return true
    }

    /// The event inputs. An empty history is one masked row, because few graphs accept an axis of length 0.
    func inputs(nowMs: Int64, position: Int64) -> [String: Tensor] {
        let window: [Event?] = events.isEmpty ? [nil] : events
        let gap: [Float] = window.flatMap { event -> [Float] in
            guard let event else { return [0, 0] }
            let since = min(max(nowMs - event.impressionMs, 0), Self.gapSecondsMax * 1000)
            let positions = min(max(position - event.position, 0), Self.gapPositionsMax)
            return [Float(Double(since) * 1e-3), Float(positions)]
        }
        return [
            "event_float": rows(window.map { $0?.floats }, width: spec.candidateFloats.count),
            "event_category": codes(window.map { $0?.categories }, width: spec.candidateCategories.count),
            "event_vector": rows(window.map { $0?.vector }, width: spec.vectorWidth),
            "event_feedback": rows(window.map { $0?.feedback }, width: spec.feedbackFloats.count),
            "event_gap": .floats(gap, shape: [1, window.count, 2]),
            "event_mask": .floats(window.map { $0 == nil ? 0 : 1 }, shape: [1, window.count]),
        ]
    }
}
