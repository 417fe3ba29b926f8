// SAMPLE, never compiled and never run: there was no Swift compiler. See README.md.
import CoreML
import Foundation

/// A .mlpackage of a bundle: the whole model, with free counts of candidates and events (iOS 17 and later).
final class CoreMLModel: Model {
    private let model: MLModel
    private let inputs: Set<String>

    /// Compiling takes about a second, once for each bundle: keep the .mlmodelc next to the bundle and open that the next time.
    /// Not on the main thread.
    static func compile(_ package: URL, to compiled: URL) async throws {
        let temporary = try await MLModel.compileModel(at: package)
        _ = try? FileManager.default.removeItem(at: compiled)
        try FileManager.default.moveItem(at: temporary, to: compiled)
    }

    init(compiled: URL) throws {
        let configuration = MLModelConfiguration()
        // The CPU finishes so small a model before the Neural Engine has started; measure it on your devices.
        configuration.computeUnits = .cpuOnly
        model = try MLModel(contentsOf: compiled, configuration: configuration)
        inputs = Set(model.modelDescription.inputDescriptionsByName.keys)
    }

    func scores(_ tensors: [String: Tensor]) throws -> [Float] {
        var features: [String: MLMultiArray] = [:]
        for name in inputs {
            guard let tensor = tensors[name] else { throw ModelError(message: "no input \(name)") }
            switch tensor {
            case .floats(let values, let shape): features[name] = MLMultiArray(MLShapedArray(scalars: values, shape: shape))
            case .ints(let values, let shape): features[name] = MLMultiArray(MLShapedArray(scalars: values, shape: shape))
            }
        }
        let answer = try model.prediction(from: MLDictionaryFeatureProvider(dictionary: features))
        guard let scores = answer.featureValue(for: "scores")?.multiArrayValue, scores.dataType == .float32 else {
            throw ModelError(message: "no scores")
        }
        return MLShapedArray<Float>(scores).scalars // row-major, whatever strides Core ML chose
    }
}
