// SAMPLE, never compiled and never run: there was no Swift compiler. See README.md.
import Foundation

/// What is counted, so that no fallback is silent. The names are those of the SDK's counters.
enum Count: String {
    case pagesRefused = "pages_refused", pagesEmpty = "pages_empty", featuresBad = "features_bad"
    case columnsMissing = "columns_missing", splitMismatch = "split_mismatch", vectorsAbsent = "vectors_absent"
    case vectorsBad = "vectors_bad", noModel = "no_model", duplicates, alreadyShown = "already_shown", reranks
    case modelFailed = "model_failed", scoresBad = "scores_bad", events, eventsDuplicate = "events_duplicate"
    case eventsUnknownItem = "events_unknown_item", eventsLate = "events_late", shownElsewhere = "shown_elsewhere"
}

/// When to ask for a page, and for how many: once `consume` of a page were shown, none is left, or it is stale; for `size`.
struct Paging {
    var consume = 10
    var size = 30
}

/// Whether to ask now, and why: `empty`, `stale`, `consumed`, or `continue`.
struct PageDecision {
    let request: Bool
    let size: Int
    let reason: String
}

/// One user's feed: takes pages, shows the best item next, learns from each swipe, says when to ask for more. Belongs to one actor
/// (FeedController.swift). Nothing here throws for bad data or a broken model; what happens instead is counted in `counts`.
/// Without a `ranker` (no bundle yet) the feed keeps cloud order.
final class FeedSession {
    static let shownMax = 256 // items that the cloud leaves out of the next page, and whose features feedback needs
    static let noFeatures = FeatureSpec(
        version: nil, tasks: ["none"], taskWeights: [:], candidatesMax: 1, eventsMax: 1, vectorWidth: 0,
        candidateFloats: [], candidateCategories: [], feedbackFloats: [], contextFloats: [], numbering: nil
    )

    let userId: Int64
    let sessionId: String
    private(set) var counts: [Count: Int] = [:]
    /// The form of the model that orders this page; nil is cloud order.
    private(set) var form: Form?
    /// Impressions so far: the position in the session of what `next` will show.
    private(set) var position: Int64 = 0

    private let ranker: Ranker?
    private let outbox: Outbox
    private let paging: Paging
    private let clock: () -> Int64
    private let builder: FeatureBuilder
    private var history: EventHistory
    private var shown: [Int64: (page: PageFeatures, row: Int)] = [:]
    private var shownInOrder: [Int64] = []
    private var page: Page?
    private var held: Remaining?
    private var order: [Int]? // nil: out of date
    private var taken = ContinuousClock.now // ages are by a clock that nobody sets: the wall clock may be set at any time
    private var shownOfPage = 0
    private var requests = 0

    init(
        ranker: Ranker?, userId: Int64, sessionId: String, outbox: Outbox, paging: Paging = Paging(),
        clock: @escaping () -> Int64 = { Int64(Date().timeIntervalSince1970 * 1000) }
    ) {
        self.ranker = ranker
        self.userId = userId
        self.sessionId = sessionId
        self.outbox = outbox
        self.paging = paging
        self.clock = clock
        let builder = ranker?.builder ?? FeatureBuilder(spec: Self.noFeatures)
        self.builder = builder
        history = EventHistory(spec: builder.spec)
    }

    /// Id of the current page, for `FeedbackEvent.pageId`.
    var pageId: String? { page?.pageId }

    /// Hold `page` instead of what was not shown yet. False when there is nothing new in it; what was held then stays.
    func take(_ page: Page) -> Bool {
        guard var features = try? builder.page(page) else {
            count(.pagesRefused)
            return false
        }
        count(.duplicates, features.duplicates)
        let rows = features.itemIds.indices.filter { shown[features.itemIds[$0]] == nil }
        count(.alreadyShown, features.itemIds.count - rows.count)
        if rows.isEmpty {
            count(.pagesEmpty)
            return false
        }
        form = chooseForm(page, features)
        if form != .split { features = features.withoutVectors() }
        self.page = page
        held = Remaining(page: features, rows: rows)
        order = nil
        taken = .now
        shownOfPage = 0
        return true
    }

    /// A model never gets vectors of another split version: then the self-contained form orders the page, else cloud order.
    private func chooseForm(_ page: Page, _ features: PageFeatures) -> Form? {
        guard let ranker else { return nil }
        count(.columnsMissing, features.missingColumns)
        if !features.readable {
            count(.featuresBad)
            return nil
        }
        if ranker.models[.split] != nil {
            if page.vector == nil || page.userVector == nil {
                count(.vectorsAbsent)
            } else if page.splitVersion != ranker.splitVersion {
                count(.splitMismatch)
            } else if features.vectors == nil {
                count(.vectorsBad)
            } else {
                return .split
            }
        }
        if ranker.models[.selfContained] != nil { return .selfContained }
        count(.noModel)
        return nil
    }

    /// The item to show now, which then counts as shown; nil when nothing is held.
    func next() -> Int64? {
        guard let held, !held.rows.isEmpty else { return nil }
        let best = rank(held)[0]
        show(best)
        return held.item(at: best)
    }

    /// The remaining items in their current order, for prefetching.
    func remaining() -> [Int64] {
        guard let held else { return [] }
        return rank(held).map { held.item(at: $0) }
    }

    /// Learn from a finished impression and queue it for upload. False for one whose id is known.
    func feedback(_ event: FeedbackEvent) -> Bool {
        guard outbox.add(event) else {
            count(.eventsDuplicate)
            return false
        }
        count(.events)
        if shown[event.itemId] == nil {
            guard let held, let at = held.rows.indices.first(where: { held.item(at: $0) == event.itemId }) else {
                count(.eventsUnknownItem)
                return true
            }
            count(.shownElsewhere)
            show(at)
        }
        guard let (features, row) = shown[event.itemId] else { return true }
        let kept = history.append(
            impressionMs: event.impressionMs, position: event.position, feedback: builder.feedback(event), page: features, row: row
        )
        if !kept { count(.eventsLate) }
        order = nil
        return true
    }

    /// Whether to ask the cloud for a page now.
    func wantsPage() -> PageDecision {
        var reason = "continue"
        if let page, let held, !held.rows.isEmpty {
            if taken.duration(to: .now) >= .milliseconds(page.ttlMs) {
                reason = "stale"
            } else if shownOfPage >= paging.consume {
                reason = "consumed"
            }
        } else {
            reason = "empty"
        }
        return PageDecision(request: reason != "continue", size: paging.size, reason: reason)
    }

    /// The request for the next page, with up to `eventsMax` events of waiting feedback. After its answer, which is a page with
    /// its id, pass its events to `Outbox.acknowledged`.
    func request(size: Int, scene: Int = 0, eventsMax: Int = Outbox.eventsMax) -> PageRequest {
        requests += 1
        let id = "\(sessionId)/\(requests)"
        let waiting = outbox.waitingEvents(eventsMax)
        // Without the split version the cloud answers a page without vectors.
        let split = ranker.flatMap { $0.models[.split] == nil ? nil : $0.splitVersion }
        let body: [String: Value] = [
            "version": .int(wireVersion),
            "request_id": .text(id),
            "user_id": .int(userId),
            "session_id": .text(sessionId),
            "now_ms": .int(clock()),
            "size": .int(Int64(size)),
            "scene": .int(Int64(scene)),
            "split_version": split.map(Value.text) ?? .null,
            "feedback": .list(waiting.map { .raw($0.bytes) }),
            "exclude": .list(shownInOrder.map(Value.int)),
        ]
        return PageRequest(id: id, bytes: MessagePack.encode(.map(body)), eventIds: waiting.map(\.id))
    }

    /// Indices into `held.rows`, best first; computed once after each change.
    private func rank(_ held: Remaining) -> [Int] {
        if let order { return order }
        let made = scored(held) ?? Array(held.rows.indices)
        order = made
        return made
    }

    private func scored(_ held: Remaining) -> [Int]? {
        guard let ranker, let form, held.rows.count > 1 else { return nil }
        do {
            let order = try ranker.order(form, held, history, nowMs: clock(), position: position)
            count(order == nil ? .scoresBad : .reranks)
            return order
        } catch {
            count(.modelFailed)
            return nil
        }
    }

    private func show(_ index: Int) {
        guard let held else { return }
        let item = held.item(at: index)
        shown[item] = (held.page, held.rows[index])
        shownInOrder.append(item)
        self.held?.rows.remove(at: index)
        if shownInOrder.count > Self.shownMax { shown[shownInOrder.removeFirst()] = nil }
        position += 1
        shownOfPage += 1
        order = nil
    }

    private func count(_ what: Count, _ by: Int = 1) { counts[what, default: 0] += by }
}
